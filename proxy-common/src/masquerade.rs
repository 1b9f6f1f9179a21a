//! `MASQ`: the reply tuples of flows whose client looks different to the
//! backend: because it is masqueraded, because its port was changed, or both.

use crate::{
    net::{AddrV4, AddrV6, BePort, Protocol},
    pod,
};

/// Key of `MASQ`: what the backend's replies carry. The value is the
/// [`crate::flow::FlowKey`] of the client they are for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasqueradeKey<A> {
    pub backend_addr: A,
    pub masquerade_addr: A,
    pub backend_port: BePort,
    pub masquerade_port: BePort,
    pub protocol: Protocol,
    pub zero: [u8; 3],
}

/// The ports that a masqueraded flow may take: from the first to the last one.
///
/// They are shared with everybody else on the node, as those of netfilter's
/// MASQUERADE are. `NodePorts` are left out, and so are ports from which a
/// process of the host uses the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// All ports but those below 1024, which tell backends that a client has
    /// privileges: the range of netfilter's MASQUERADE.
    pub const UNPRIVILEGED: Self = Self {
        first: 1024,
        last: u16::MAX,
    };

    /// The range of these two ports, if there is one. Port 0 is no port.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first {
            return None;
        }
        Some(Self { first, last })
    }

    /// The range as the word in which the agent hands it to the programs.
    pub const fn to_bits(self) -> u32 {
        (self.first as u32) << 16 | self.last as u32
    }

    /// The range that a word stands for.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let (first, last) = ((bits >> 16) as u16, bits as u16);
        Self { first, last }
    }

    /// Maps any number to a port, every port equally often.
    #[inline(always)]
    pub const fn nth(self, number: u32) -> u16 {
        let count = self.last.wrapping_sub(self.first) as u64 + 1;
        #[expect(clippy::cast_possible_truncation, reason = "below the count")]
        let offset = ((number as u64 * count) >> 32) as u16;
        self.first.wrapping_add(offset)
    }
}

/// The numbers of the ports that a flow tries, one after the other.
///
/// The first depends on the flow alone, so that one whose record was lost
/// usually finds its port again. The way to the others is the flow's own too, or
/// they would fill up next to each other; and it changes with time, so that a
/// packet that is sent again tries other ports. It is that of a linear
/// congruential generator, whose highest bits tell the port: equal steps would
/// lead some flows to and fro between a few ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes {
    next: u32,
    /// Odd, for the longest period.
    step: u32,
}

impl Probes {
    /// Of good lattices for generators modulo 2^32 (Steele and Vigna 2021).
    const MULTIPLIER: u32 = 0x915f_77f5;

    /// Those of the flow with this hash, at this time in flow ticks.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "halves of a hash")]
    pub const fn new(hash: u64, time: u32) -> Self {
        let spread = (time as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Self {
            next: hash as u32,
            step: ((hash >> 32) ^ spread) as u32 | 1,
        }
    }

    /// The next number.
    #[inline(always)]
    pub const fn next(&mut self) -> u32 {
        let number = self.next;
        self.next = number
            .wrapping_mul(Self::MULTIPLIER)
            .wrapping_add(self.step);
        number
    }
}

const _: () = assert!(size_of::<MasqueradeKey<AddrV4>>() == 16);
const _: () = assert!(size_of::<MasqueradeKey<AddrV6>>() == 40);
pod!(MasqueradeKey<AddrV4>, MasqueradeKey<AddrV6>);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// All numbers of a round of probes, evenly spread.
    const EVENLY: u32 = u32::MAX / 100_000;

    #[test]
    fn every_port_of_the_range_is_reached_and_no_other() {
        for (first, last) in [(1024, 65_535), (1, 1), (30_000, 30_006)] {
            let range = PortRange::new(first, last).expect("a range");
            let numbers = (0..=100_000).map(|n| n * EVENLY).chain([u32::MAX]);
            let seen: BTreeSet<_> = numbers.map(|number| range.nth(number)).collect();
            assert_eq!(seen, (first..=last).collect());
            assert_eq!(PortRange::from_bits(range.to_bits()), range);
        }
    }

    #[test]
    fn a_range_has_ports() {
        assert_eq!(PortRange::new(0, 5), None);
        assert_eq!(PortRange::new(6, 5), None);
    }

    #[test]
    fn only_the_first_probe_is_the_same_at_another_time() {
        let probe = |hash, time| {
            let mut probes = Probes::new(hash, time);
            std::array::from_fn::<_, 16, _>(|_| PortRange::UNPRIVILEGED.nth(probes.next()))
        };
        let hash = 0x0123_4567_89ab_cdef;
        let (one, other) = (probe(hash, 1000), probe(hash, 1001));
        assert_eq!(one[0], other[0]);
        assert_eq!(BTreeSet::from(one).len(), 16);
        assert!(BTreeSet::from(one).is_disjoint(&other[1..].iter().copied().collect()));
        // Nor do flows follow each other that begin at one port.
        let neighbour = probe(hash ^ 1 << 60, 1000);
        assert_eq!(one[0], neighbour[0]);
        assert_ne!(one[1], neighbour[1]);
    }

    #[test]
    fn every_flow_looks_at_many_ports() {
        // Also those whose step would lead back, as half of all numbers does.
        let steps = (1..=64_u64).flat_map(|parts| (0..parts).map(move |part| (part << 32) / parts));
        for (start, step) in steps
            .zip(1_u64..)
            .map(|(step, start)| (start * 0x9e37_79b9, step))
        {
            let mut probes = Probes::new(step << 32 | start & 0xffff_ffff, 0);
            let ports: BTreeSet<_> = (0..256)
                .map(|_| PortRange::UNPRIVILEGED.nth(probes.next()))
                .collect();
            assert!(ports.len() > 240, "{} with step {step:#x}", ports.len());
        }
    }
}
