//! One run of a packet: through which program, and what came of it.

use std::collections::BTreeMap;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use proxy_common::counter::Counter;

use super::{Packet, check};

/// The ifindex of the loopback, which test runs happen on.
pub(super) const LOOPBACK: u32 = 1;
/// Offset of `ingress_ifindex` in `struct __sk_buff`.
const INGRESS_IFINDEX: usize = 36;
/// Offset of `ifindex` in `struct __sk_buff`.
const IFINDEX: usize = 40;

/// A program that a packet runs through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    /// A forwarded packet that leaves.
    Egress,
    /// A packet of a process of this host that leaves.
    HostEgress,
    IngressLayer3,
    EgressLayer3,
    /// Both, of a packet that is forwarded and keeps its hint. The program is one
    /// for [`Datapath::load_program`](super::Datapath::load_program).
    Through,
}

impl Hook {
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress | Self::HostEgress => "egress",
            Self::IngressLayer3 => "ingress_l3",
            Self::EgressLayer3 => "egress_l3",
            Self::Through => "through",
        }
    }
}

/// The value that a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `TCX_NEXT`.
    Next,
    /// `TC_ACT_SHOT`.
    Drop,
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// Any other value: none of our programs may return it.
    Unexpected(i32),
}

/// Runs packets through one program.
#[derive(Debug)]
pub struct Runner<'a> {
    program: &'a SchedClassifier,
    hook: Hook,
}

impl<'a> Runner<'a> {
    pub(super) fn new(program: &'a SchedClassifier, hook: Hook) -> Self {
        Self { program, hook }
    }

    /// The verdict on any bytes, and what has become of them.
    pub fn run(&self, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let mut context = [0; IFINDEX + 4];
        let ingress_ifindex = u32::from(self.hook != Hook::HostEgress) * LOOPBACK;
        context[INGRESS_IFINDEX..IFINDEX].copy_from_slice(&ingress_ifindex.to_ne_bytes());
        context[IFINDEX..].copy_from_slice(&LOOPBACK.to_ne_bytes());
        let mut out = vec![0; 4096];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat: 1 + u32::from(self.hook == Hook::Through),
            ..TestRunOptions::new()
        };
        let result = self.program.test_run(options).expect("a test run");
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value.cast_signed() {
            -1 => Verdict::Next,
            2 => Verdict::Drop,
            7 => Verdict::Redirect,
            other => Verdict::Unexpected(other),
        };
        (verdict, out)
    }
}

/// The outcome of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub verdict: Verdict,
    pub packet: Vec<u8>,
    /// Counters that rose.
    pub counted: BTreeMap<&'static str, u64>,
}

impl Ran {
    /// Asserts that the packet went on as `packet`.
    #[track_caller]
    pub fn passed_as(&self, packet: &Packet) {
        assert_eq!(self.verdict, Verdict::Next, "{:?}", self.counted);
        self.assert_is(packet);
    }

    /// Asserts that `packet` was sent back in the place of the one that came.
    #[track_caller]
    pub fn answered_by(&self, packet: &Packet) {
        assert_eq!(self.verdict, Verdict::Redirect, "{:?}", self.counted);
        self.assert_is(packet);
    }

    /// Asserts that the packet was dropped for this one reason.
    #[track_caller]
    pub fn dropped_for(&self, reason: Counter) {
        assert_eq!(self.verdict, Verdict::Drop, "{:?}", self.counted);
        assert_eq!(
            self.counted.get(reason.label()),
            Some(&1),
            "{:?}",
            self.counted
        );
    }

    /// Asserts that the packet went on as it came and nothing was counted.
    #[track_caller]
    pub fn left_alone(&self, packet: &[u8]) {
        assert_eq!(self.verdict, Verdict::Next, "{:?}", self.counted);
        assert_eq!(hex(&self.packet), hex(packet));
        assert_eq!(self.counted, BTreeMap::new());
    }

    /// Asserts that exactly these counters rose, by one each.
    #[track_caller]
    pub fn counted(&self, counters: &[Counter]) {
        let expected = counters
            .iter()
            .map(|counter| (counter.label(), 1))
            .collect();
        assert_eq!(self.counted, expected);
    }

    #[track_caller]
    fn assert_is(&self, packet: &Packet) {
        assert_eq!(
            hex(&self.packet),
            hex(&packet.bytes()),
            "expected {packet:?}"
        );
        let checked = if packet.layer3 {
            check::packet(&self.packet)
        } else {
            check::frame(&self.packet)
        };
        checked.expect("a packet that a correct sender would have sent");
    }
}

/// Sixteen bytes a line, so that a failed comparison shows where.
fn hex(bytes: &[u8]) -> Vec<String> {
    bytes
        .chunks(16)
        .map(|line| format!("{line:02x?}"))
        .collect()
}
