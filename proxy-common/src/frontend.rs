//! `FRONTENDS`: the addresses and ports that clients connect to.

use crate::{
    net::{AddrV4, AddrV6, Address, BePort, Protocol},
    pod, prefilter,
};

/// Key of `FRONTENDS`: an address, port and protocol that clients connect to.
///
/// Two kinds of keys stand for more than one address and port:
/// - [`FrontendKey::address`] is the entry of an address itself: it answers for
///   the ports that no Service has (S46);
/// - [`FrontendKey::node_port`] is a NodePort on every address of this node
///   that accepts them; which those are stands in `LOCAL_ADDRS` (S51, S52).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey<A> {
    pub addr: A,
    pub port: BePort,
    pub protocol: Protocol,
    pub zero: u8,
}

impl<A: Address> FrontendKey<A> {
    #[inline(always)]
    pub const fn new(addr: A, port: BePort, protocol: Protocol) -> Self {
        Self {
            addr,
            port,
            protocol,
            zero: 0,
        }
    }

    /// The entry that stands for all other ports of `addr`.
    #[inline(always)]
    pub const fn address(addr: A) -> Self {
        Self::new(addr, BePort::ZERO, Protocol::ANY)
    }

    /// A NodePort, on whatever address of this node.
    #[inline(always)]
    pub const fn node_port(port: BePort, protocol: Protocol) -> Self {
        Self::new(A::ZERO, port, protocol)
    }

    /// Returns the [`Frontend::tag`] of this key.
    #[inline(always)]
    pub fn tag(&self) -> u16 {
        let salt = (u32::from(self.port.to_bits()) << 8) | u32::from(self.protocol.0);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "16 bits of the hash are wanted"
        )]
        let tag = (prefilter::mix(&self.addr, salt) >> 8) as u16;
        tag
    }
}

/// Value of `FRONTENDS`. Eight bytes, read and written as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Row of `SERVICES`; [`Frontend::NO_SERVICE`] in an address entry.
    pub service: u32,
    /// [`Frontend::LOCAL_SET`] and the other flags.
    pub flags: u8,
    /// The kind of frontend: [`Frontend::CLUSTER_IP`] and the others.
    /// In an address entry, the kind of the address.
    pub kind: u8,
    /// [`FrontendKey::tag`]. A hash element may be freed and given to another
    /// key between the look-up and the read of its value; the reader sees that
    /// here.
    pub tag: u16,
}

impl Frontend {
    /// Service row of an address entry.
    pub const NO_SERVICE: u32 = u32::MAX;
    /// The traffic policy for this kind of frontend is Local: internal for
    /// cluster IPs, where it holds for everyone, external for all others, where
    /// pods and this node's own processes are exempt (S39).
    pub const LOCAL_SET: u8 = 1;
    /// Only clients that `SOURCE_RANGES` has for the Service may (S58).
    pub const SOURCE_RANGES: u8 = 2;
    /// With [`Frontend::SOURCE_RANGES`]: so may packets that come from the
    /// frontend's own address (S59).
    pub const ALLOW_ITSELF: u8 = 4;

    /// A Service's cluster IP.
    pub const CLUSTER_IP: u8 = 1;
    /// A port of this node.
    pub const NODE_PORT: u8 = 2;
    /// One of spec.externalIPs.
    pub const EXTERNAL_IP: u8 = 3;
    /// One of status.loadBalancer.ingress.
    pub const LOAD_BALANCER: u8 = 4;
}

const _: () = assert!(size_of::<FrontendKey<AddrV4>>() == 8);
const _: () = assert!(size_of::<FrontendKey<AddrV6>>() == 20);
const _: () = assert!(size_of::<Frontend>() == 8);
pod!(FrontendKey<AddrV4>, FrontendKey<AddrV6>, Frontend);
