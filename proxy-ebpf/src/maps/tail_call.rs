//! The programs of the slow path.

use aya_ebpf::{btf_maps::ProgramArray, macros::btf_map};
use proxy_common::{
    counter::Counter,
    family::{V4, V6},
};

use crate::packet::{skb::Skb, verdict::Outcome};

/// The slow path's programs, at the index [`Slow`].
#[btf_map]
static PROGRAMS: ProgramArray<16> = ProgramArray::new();

/// Index of `PROGRAMS`.
#[derive(Clone, Copy)]
pub enum Slow {
    IngressV4,
    IngressV6,
    EgressV4,
    EgressV6,
    HostV4,
    HostV6,
    UplinkV4,
    UplinkV6,
}

/// One family's programs of the slow path.
pub struct SlowPath {
    /// Packets that come in.
    pub ingress: Slow,
    /// Packets that leave.
    pub egress: Slow,
    /// Packets of this host's own processes that leave for a frontend.
    pub host: Slow,
    /// Translated replies that leave by their client's uplink.
    pub uplink: Slow,
}

/// Goes on in a program of the slow path. Returns only if it is not there, with what
/// becomes of the packet.
#[inline(always)]
pub fn go_slow(skb: Skb, program: Slow) -> Outcome {
    // SAFETY: the context is the one this program was given.
    unsafe { PROGRAMS.tail_call(&skb, program as u32) };
    Outcome::drop(Counter::SlowPathMissing)
}

/// Gives code that is generic over the family its slow path.
pub trait SlowPrograms {
    const SLOW: SlowPath;
}

impl SlowPrograms for V4 {
    const SLOW: SlowPath = SlowPath {
        ingress: Slow::IngressV4,
        egress: Slow::EgressV4,
        host: Slow::HostV4,
        uplink: Slow::UplinkV4,
    };
}

impl SlowPrograms for V6 {
    const SLOW: SlowPath = SlowPath {
        ingress: Slow::IngressV6,
        egress: Slow::EgressV6,
        host: Slow::HostV6,
        uplink: Slow::UplinkV6,
    };
}
