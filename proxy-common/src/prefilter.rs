//! `PREFILTER`: a Bloom filter with one hash that answers "not ours" for
//! nearly all other traffic in one cached load (E11).
//!
//! Four filters per family: addresses of frontends, backends (with port),
//! addresses that replies to masqueraded flows come to, and NodePorts, where
//! each has a bit of its own. A set bit means "look it up". The agent sets its filters before the entries they stand
//! for and clears bits only in its periodic comparison, which keeps those of
//! flows that outlive their frontend or backend. The programs set the third,
//! and nobody clears it: a node has few addresses.

use crate::{
    net::{Address, BePort, Protocol},
    pod,
};

/// Bits in one filter: 128 KiB, a tenth full at 100,000 entries. What it lets
/// through by mistake goes the slow path.
pub const BITS: u32 = 1 << 20;

/// The bits of a 32-bit hash that are left over.
const SHIFT: u32 = 32 - BITS.trailing_zeros();

/// 64-bit words in one filter.
pub const WORDS: usize = (BITS / 64) as usize;

/// Value of `PREFILTER`, at index [`FRONTENDS`], [`BACKENDS`], [`MASQUERADES`]
/// or [`NODE_PORTS`].
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Filter {
    pub words: [u64; WORDS],
}

/// Index of the filter of frontend addresses.
pub const FRONTENDS: u32 = 0;
/// Index of the filter of backends.
pub const BACKENDS: u32 = 1;
/// Index of the filter of masquerade addresses.
pub const MASQUERADES: u32 = 2;
/// Index of the filter of NodePorts.
pub const NODE_PORTS: u32 = 3;
/// Number of filters.
pub const FILTERS: usize = 4;

/// Bit of a frontend or masquerade address.
#[inline(always)]
pub fn frontend_bit<A: Address>(addr: &A) -> u32 {
    mix(addr, 0) >> SHIFT
}

/// Bit of a backend.
#[inline(always)]
pub fn backend_bit<A: Address>(addr: &A, port: BePort, protocol: Protocol) -> u32 {
    mix(
        addr,
        (u32::from(port.to_bits()) << 8) | u32::from(protocol.0),
    ) >> SHIFT
}

/// Bit of a NodePort. Exact: no two ports of TCP, UDP and SCTP share one.
#[inline(always)]
pub fn node_port_bit(port: BePort, protocol: Protocol) -> u32 {
    let class = match protocol {
        Protocol::TCP => 0,
        Protocol::UDP => 1,
        Protocol::SCTP => 2,
        // Has no NodePorts.
        _ => 3,
    };
    (class << 16) | u32::from(port.to_bits())
}

/// Mixes an address and a salt to 32 well-spread bits. Not keyed: collisions
/// cost a look-up, nothing else.
#[inline(always)]
pub fn mix<A: Address>(addr: &A, salt: u32) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    const ODD_TOO: u64 = 0xd6e8_feb8_6659_fd93;
    let mut hash = u64::from(salt);
    if A::WORDS == 1 {
        hash = (hash ^ u64::from(addr.word(0))).wrapping_mul(ODD);
        hash ^= hash >> 32;
    } else {
        // The multiplications do not wait for each other.
        let front = pair(addr, 0).wrapping_mul(ODD);
        let back = pair(addr, 2).wrapping_mul(ODD_TOO);
        hash = hash
            .wrapping_mul(ODD)
            .wrapping_add(front ^ (front >> 32))
            .wrapping_add(back ^ (back >> 32));
        hash ^= hash >> 32;
    }
    (hash.wrapping_mul(ODD) >> 32) as u32
}

/// Words `index` and the next one as one number. The next one is the lower half:
/// addresses differ in their last octets most, and a product carries what
/// differs upwards only.
#[inline(always)]
fn pair<A: Address>(addr: &A, index: usize) -> u64 {
    (u64::from(addr.word(index)) << 32) | u64::from(addr.word(index + 1))
}

pod!(Filter);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::net::{AddrV4, AddrV6};

    /// Share of filter bits that `count` consecutive addresses set, against
    /// the share that random bits would.
    fn assert_spread(bits: impl Iterator<Item = u32>, count: u32) {
        let distinct = bits
            .inspect(|bit| assert!(*bit < BITS))
            .collect::<std::collections::BTreeSet<_>>()
            .len();
        let expected = f64::from(BITS) * (1.0 - (-f64::from(count) / f64::from(BITS)).exp());
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let distinct = distinct as f64;
        assert!(
            distinct > expected * 0.95,
            "{distinct} of {expected} distinct bits"
        );
    }

    #[test]
    fn consecutive_addresses_spread() {
        let count = 100_000;
        assert_spread(
            (0..count).map(|n| frontend_bit(&AddrV4::from(Ipv4Addr::from(0x0a60_0000 + n)))),
            count,
        );
        assert_spread(
            (0..count).map(|n| {
                let addr = Ipv6Addr::from((0xfd00_0010_0096_u128 << 80) + u128::from(n));
                frontend_bit(&AddrV6::from(addr))
            }),
            count,
        );
    }

    /// Nodes have a prefix each, and their pods small numbers in it.
    #[test]
    fn pods_of_many_nodes_spread() {
        for prefix in [48, 64, 80] {
            assert_spread(
                (0..100_000_u32).map(|n| {
                    let (node, pod) = (n / 1000, n % 1000 + 1);
                    let addr = (0xfd00_0010_0244_u128 << 80)
                        | u128::from(node) << (128 - prefix - 16)
                        | u128::from(pod);
                    frontend_bit(&AddrV6::from(Ipv6Addr::from(addr)))
                }),
                100_000,
            );
        }
        assert_spread(
            (0..100_000).map(|n| {
                let (node, pod) = (n / 250, n % 250 + 1);
                frontend_bit(&AddrV4::from(Ipv4Addr::from(
                    0x0af4_0000 + node * 256 + pod,
                )))
            }),
            100_000,
        );
    }

    #[test]
    fn port_and_protocol_count_for_backends() {
        let addr = AddrV4::from(Ipv4Addr::new(10, 0, 0, 1));
        let bit = |port, protocol| backend_bit(&addr, BePort::new(port), protocol);
        assert_ne!(bit(80, Protocol::TCP), bit(81, Protocol::TCP));
        assert_ne!(bit(80, Protocol::TCP), bit(80, Protocol::UDP));
    }
}
