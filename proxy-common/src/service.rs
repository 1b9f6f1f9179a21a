//! `SERVICES` and `SLOTS`: which backends a Service port may use.

use crate::pod;

/// A contiguous range of `SLOTS`, replaced by one eight-byte store: a packet
/// sees the old set of backends or the new one, never a mixture (P5).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRange {
    /// Index of the first slot. In an empty range: [`SlotRange::REJECT`] or [`SlotRange::DROP`].
    pub first: u32,
    /// Number of slots.
    pub count: u32,
}

impl SlotRange {
    /// `first` of an empty range: no endpoint anywhere can serve, refuse (S43).
    pub const REJECT: u32 = 0;
    /// `first` of an empty range: endpoints exist, but none for this path, drop (S43).
    pub const DROP: u32 = 1;

    /// An empty range that refuses new flows.
    pub const fn reject() -> Self {
        Self {
            first: Self::REJECT,
            count: 0,
        }
    }

    /// An empty range that drops new flows.
    pub const fn drop() -> Self {
        Self {
            first: Self::DROP,
            count: 0,
        }
    }
}

/// Session affinity of a Service port, replaced by one eight-byte store.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionAffinity {
    /// Seconds without a new connection after which a client is forgotten
    /// (S72). 0: no affinity.
    pub seconds: u32,
    /// Raised each time affinity is switched on, so that what was remembered
    /// before counts no more (S75).
    pub round: u32,
}

impl SessionAffinity {
    /// No affinity.
    pub const NONE: Self = Self {
        seconds: 0,
        round: 0,
    };
}

/// Value of `SERVICES`: one row for each Service port and family, shared by
/// all of its frontends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Backends for traffic policy Cluster.
    pub cluster: SlotRange,
    /// Backends for traffic policy Local.
    pub local: SlotRange,
    /// sessionAffinity: ClientIP.
    pub session_affinity: SessionAffinity,
}

impl Service {
    /// A row that no frontend uses.
    pub const FREE: Self = Self {
        cluster: SlotRange::reject(),
        local: SlotRange::reject(),
        session_affinity: SessionAffinity::NONE,
    };
}

/// Value of `SLOTS`: a row of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub backend: u32,
}

/// Longest namespace, Service name and port name (RFC 1123 label).
pub const NAME_LEN: usize = 63;

/// Value of `NAMES`: which Service port a row of `SERVICES` belongs to. For
/// people who read the maps, and for an agent that adopts them; no program
/// reads it. Unused bytes are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceName {
    pub namespace: [u8; NAME_LEN + 1],
    pub name: [u8; NAME_LEN + 1],
    pub port: [u8; NAME_LEN + 1],
    pub protocol: u32,
}

const _: () = assert!(size_of::<SlotRange>() == 8);
const _: () = assert!(size_of::<Service>() == 24);
const _: () = assert!(size_of::<Slot>() == 4);
const _: () = assert!(size_of::<ServiceName>() == 196);
pod!(SlotRange, SessionAffinity, Service, Slot, ServiceName);
