//! `FRAGMENTS`: the ports of datagrams whose later fragments carry none.

use crate::{
    net::{AddrV4, AddrV6, BePort, Protocol},
    pod,
};

/// Key of `FRAGMENTS`, as the fragment looks where it is seen: addresses
/// differ at each hook, so the hook is part of the key (E21).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    /// Identification field, network order, zero-extended for IPv4.
    pub id: u32,
    pub protocol: Protocol,
    /// 0 at ingress, 1 at egress. 2 with `id` 0: not a datagram, but the fact
    /// that replies from `src` to `dst` are translated at egress.
    pub hook: u8,
    pub zero: [u8; 2],
}

/// Value of `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    pub src: BePort,
    pub dst: BePort,
    /// Transport protocol; in IPv6 the key's may be that of an extension header.
    pub protocol: Protocol,
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<FragmentKey<AddrV4>>() == 16);
const _: () = assert!(size_of::<FragmentKey<AddrV6>>() == 40);
const _: () = assert!(size_of::<FragmentPorts>() == 8);
pod!(FragmentKey<AddrV4>, FragmentKey<AddrV6>, FragmentPorts);
