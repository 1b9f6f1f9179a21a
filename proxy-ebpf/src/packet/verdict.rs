//! Verdicts on packets.

use core::num::NonZeroI32;

use proxy_common::{counter::Counter, explain::Decision};

use crate::counters::count;

/// The result of the attempt to open a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opened {
    /// The record is in the table.
    Flow,
    /// The packet is not addressed to a frontend.
    NotOurs,
    NoEndpoint,
    NoLocalEndpoint,
    UnknownPort,
    TooManyFrontends,
    FlowTableFull,
    /// Its packets towards the backend need a port, and none is free.
    PortsExhausted,
    /// The frontend is not for this client.
    Denied,
    /// A reset of a connection that is long gone.
    Reset,
    /// No Service has the address, which is one for cluster IPs.
    Unallocated,
    /// The table is nearly full, and the client has its share of it.
    OverShare,
}

impl Opened {
    /// The reason to count, where no flow was opened.
    #[inline(always)]
    pub fn reason(self) -> Option<Counter> {
        match self {
            Self::Flow | Self::NotOurs | Self::Reset => None,
            Self::NoEndpoint => Some(Counter::NoEndpoint),
            Self::NoLocalEndpoint => Some(Counter::NoLocalEndpoint),
            Self::UnknownPort => Some(Counter::UnknownPort),
            Self::TooManyFrontends => Some(Counter::TooManyFrontends),
            Self::FlowTableFull => Some(Counter::FlowTableFull),
            Self::OverShare => Some(Counter::ClientOverShare),
            Self::PortsExhausted => Some(Counter::MasqueradePortsExhausted),
            Self::Denied => Some(Counter::SourceRangeDenied),
            Self::Unallocated => Some(Counter::Unallocated),
        }
    }
}

impl From<Decision> for Opened {
    #[inline(always)]
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Pass | Decision::Listener | Decision::Loopback => Self::NotOurs,
            Decision::Forward => Self::Flow,
            Decision::NoEndpoint => Self::NoEndpoint,
            Decision::NoLocalEndpoint => Self::NoLocalEndpoint,
            Decision::UnknownPort => Self::UnknownPort,
            Decision::Denied => Self::Denied,
            Decision::Unallocated => Self::Unallocated,
            Decision::Reset => Self::Reset,
            Decision::TooManyFrontends => Self::TooManyFrontends,
        }
    }
}

/// Verdict on a packet: the program's return value.
///
/// One register wide, also within `Option` and `Result<_, Fault>`. As an enum
/// with fields it would be copied with the fields it does not have, which the
/// verifier takes for a read of uninitialised memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(NonZeroI32);

impl Outcome {
    /// Not ours, or translated: goes on, through other programs too (P10).
    /// `TCX_NEXT`, which is also `TC_ACT_UNSPEC`.
    pub const NEXT: Self = Self(NonZeroI32::new(-1).unwrap());
    /// Dropped without counting (a reset of a connection long gone).
    /// `TC_ACT_SHOT`.
    pub const DROP_SILENTLY: Self = Self(NonZeroI32::new(2).unwrap());

    /// No verdict: another CPU changed what this packet was about to use, and
    /// the slow path has to begin anew. Never returned to the kernel.
    pub const AGAIN: Self = Self(NonZeroI32::MIN);
    /// No verdict: a translated reply is to leave by its client's uplink, which
    /// another program of the slow path sees to. Never returned to the kernel.
    pub const BY_UPLINK: Self = Self(NonZeroI32::new(i32::MIN + 1).unwrap());

    /// Must not pass, for the counted reason.
    #[inline(always)]
    pub fn drop(reason: Counter) -> Self {
        count(reason);
        Self::DROP_SILENTLY
    }

    /// Sent elsewhere by a redirect helper that returned this.
    #[inline(always)]
    pub fn redirect(action: i64) -> Self {
        match NonZeroI32::new(action as i32) {
            Some(action) => Self(action),
            None => Self::DROP_SILENTLY,
        }
    }

    /// The program's return value.
    #[inline(always)]
    pub fn action(self) -> i32 {
        self.0.get()
    }
}

/// A rewrite that could not be done. The packet is dropped: half a translation
/// must never leave.
pub struct Fault;

impl From<Fault> for Outcome {
    #[inline(always)]
    fn from(_: Fault) -> Self {
        Self::drop(Counter::RewriteFailed)
    }
}
