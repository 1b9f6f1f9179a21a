//! `AFFINITY`: which backend a client used last (sessionAffinity: ClientIP).

use crate::{
    net::{AddrV4, AddrV6},
    pod,
};

/// Key of `AFFINITY`. One entry for each of a Service port's sets, because the
/// endpoint remembered for one may not be in the other (S73).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey<A> {
    /// The client, as it is before any masquerade (S71).
    pub client: A,
    /// Row of `SERVICES`: affinity is per Service port, over all its frontends.
    pub service: u32,
    /// 0 for the cluster set, 1 for the local set.
    pub set: u32,
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Row of `BACKENDS`, with the generation and epoch it had.
    pub backend: u32,
    pub generation: u32,
    /// [`crate::service::SessionAffinity::round`] at that time.
    pub round: u32,
    /// Time of the last new connection, in flow ticks (see [`crate::flow::ticks`]).
    pub last_used: u32,
    pub epoch: u8,
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<AffinityKey<AddrV4>>() == 12);
const _: () = assert!(size_of::<AffinityKey<AddrV6>>() == 24);
const _: () = assert!(size_of::<Affinity>() == 20);
pod!(AffinityKey<AddrV4>, AffinityKey<AddrV6>, Affinity);
