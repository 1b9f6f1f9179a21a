//! `SOCKETS`: the frontends that a socket connected or sent to, and the backends it got.
//!
//! The kernel keeps a value with each socket that was translated and frees it
//! with the socket. One layout serves both families, because one socket may
//! use both: IPv4 addresses are in their mapped form (`::ffff:a.b.c.d`, E14).

use crate::{
    net::{AddrV4, AddrV6, Address as _, BePort, Protocol},
    pod,
};

/// The number of frontends that an unconnected socket may talk to at one time (E16).
pub const PEERS: usize = 4;

/// Value of `SOCKETS`. All programs that use it hold the socket's lock.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peers {
    /// `SO_NETNS_COOKIE` of the socket.
    pub netns_cookie: u64,
    /// `SO_COOKIE` of the socket: tells it from another one with the same
    /// addresses.
    pub cookie: u64,
    /// No two in use have one backend, or replies would look the same.
    pub peers: [Peer; PEERS],
    /// [`Peers::CROWDED`].
    pub flags: u32,
    pub zero: u32,
}

impl Peers {
    /// The socket talks to more frontends than can be kept apart here. All
    /// its datagrams are the packet path's then: if only some were, its flows
    /// would take the replies of the others for theirs.
    pub const CROWDED: u32 = 1;
}

/// A frontend that the socket connected or sent to, and the backend it got.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub frontend_addr: AddrV6,
    pub backend_addr: AddrV6,
    /// [`BePort::ZERO`]: the entry is not in use.
    pub frontend_port: BePort,
    pub backend_port: BePort,
    /// Row of `BACKENDS` and the generation it had.
    pub backend: u32,
    pub generation: u32,
    /// The time of the frontend's last use, in flow ticks (see
    /// [`crate::flow::ticks`]).
    pub last_used: u32,
    pub protocol: Protocol,
    /// [`Peer::CONNECTED`], [`Peer::ITSELF`].
    pub flags: u8,
    pub zero: [u8; 2],
}

impl Peer {
    /// By `connect`, not by `sendto`.
    pub const CONNECTED: u8 = 1;
    /// No frontend at all: a backend from which the socket has received a datagram,
    /// which it will answer. Frontend and backend are the same.
    pub const ITSELF: u8 = 2;

    /// An entry that is not in use.
    pub const VACANT: Self = Self {
        frontend_addr: AddrV6 { octets: [0; 16] },
        backend_addr: AddrV6 { octets: [0; 16] },
        frontend_port: BePort::ZERO,
        backend_port: BePort::ZERO,
        backend: 0,
        generation: 0,
        last_used: 0,
        protocol: Protocol(0),
        flags: 0,
        zero: [0; 2],
    };

    /// Returns whether this is the backend of an entry that is in use.
    #[inline(always)]
    pub fn has_backend(&self, addr: &AddrV6, port: BePort) -> bool {
        self.frontend_port != BePort::ZERO
            && self.backend_port == port
            && self.backend_addr == *addr
    }

    /// Returns whether this is the frontend of an entry that is in use.
    #[inline(always)]
    pub fn has_frontend(&self, addr: &AddrV6, port: BePort) -> bool {
        self.frontend_port != BePort::ZERO
            && self.frontend_port == port
            && self.frontend_addr == *addr
    }
}

/// The question to the program `stale_socket`, behind an Ethernet header: whether
/// this connected UDP socket of the caller's network namespace has a backend
/// that serves no more.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketQuery {
    /// `SO_COOKIE` of the socket.
    pub cookie: u64,
    /// The socket's own address and where it is connected to; IPv4 in the
    /// mapped form.
    pub local_addr: AddrV6,
    pub peer_addr: AddrV6,
    pub local_port: BePort,
    pub peer_port: BePort,
    pub zero: [u8; 4],
}

impl AddrV4 {
    /// The address as IPv6 sockets spell it.
    #[inline(always)]
    pub const fn mapped(self) -> AddrV6 {
        let [a, b, c, d] = self.octets;
        AddrV6 {
            octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        }
    }
}

impl AddrV6 {
    /// The IPv4 address that this one stands for, if it is a mapped one.
    #[inline(always)]
    pub fn unmapped(&self) -> Option<AddrV4> {
        let is_mapped = self.word(0) | self.word(1) == 0 && self.word(2) == 0xffff_u32.to_be();
        is_mapped.then(|| AddrV4 {
            octets: self.word(3).to_ne_bytes(),
        })
    }
}

const _: () = assert!(size_of::<Peer>() == 52);
const _: () = assert!(size_of::<Peers>() == 24 + PEERS * 52);
const _: () = assert!(size_of::<SocketQuery>() == 48);
pod!(Peers, SocketQuery);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn mapped_addresses_are_those_of_sockets() {
        let v4 = Ipv4Addr::new(10, 96, 0, 10);
        let mapped = AddrV4::from(v4).mapped();
        assert_eq!(mapped, AddrV6::from(v4.to_ipv6_mapped()));
        assert_eq!(mapped.unmapped(), Some(AddrV4::from(v4)));
        for other in ["::a60:a", "::fffe:a60:a", "1::ffff:a60:a", "fd00::1", "::1"] {
            let other: Ipv6Addr = other.parse().expect("an address");
            assert_eq!(AddrV6::from(other).unmapped(), None, "{other}");
        }
    }

    #[test]
    fn a_vacant_entry_matches_nothing() {
        let (addr, port) = (AddrV6 { octets: [0; 16] }, BePort::ZERO);
        assert!(!Peer::VACANT.has_backend(&addr, port));
        assert!(!Peer::VACANT.has_frontend(&addr, port));
    }
}
