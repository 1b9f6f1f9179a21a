//! What becomes of a packet.

use core::num::NonZeroI32;

use proxy_common::counter::Counter;

use crate::maps::tables;

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
        tables::count(reason);
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
