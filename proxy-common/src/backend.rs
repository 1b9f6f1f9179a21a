//! `BACKENDS`: one row for each endpoint of each Service port.

use crate::{
    net::{AddrV4, AddrV6, BePort},
    pod,
};

/// Value of `BACKENDS`.
///
/// Address and port are written only while no slot names the row. `flags` and
/// `epoch` change in place, by one two-byte store.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    pub addr: A,
    /// Row of `SERVICES` that the endpoint belongs to. No program reads it; it
    /// lets an agent that adopts the table see whose the row is.
    pub service: u32,
    /// Raised each time the row is given to another endpoint, so that a flow
    /// that still names the row's former owner notices (E9).
    pub generation: u32,
    pub port: BePort,
    /// [`Backend::USED`] and the other flags, or zero: the endpoint is gone.
    pub flags: u8,
    /// Raised each time the endpoint leaves the sets, so that clients that
    /// were remembered for it are forgotten (S74). Wraps.
    pub epoch: u8,
}

impl<A> Backend<A> {
    /// The endpoint answers requests. UDP flows leave a backend that does not
    /// (S77); TCP flows stay (S79).
    pub const SERVING: u8 = 1;
    /// The row belongs to an endpoint.
    pub const USED: u8 = 2;
    /// Member of the cluster set.
    pub const CLUSTER: u8 = 4;
    /// Member of the local set.
    pub const LOCAL: u8 = 8;
    /// The endpoint is on this node (S21).
    pub const HERE: u8 = 16;
}

const _: () = assert!(size_of::<Backend<AddrV4>>() == 16);
const _: () = assert!(size_of::<Backend<AddrV6>>() == 28);
pod!(Backend<AddrV4>, Backend<AddrV6>);
