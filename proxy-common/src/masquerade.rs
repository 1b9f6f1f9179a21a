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

/// Ports that a masqueraded flow may take when it cannot keep the client's:
/// below and above Linux' default ephemeral ports and Kubernetes' default
/// NodePorts (E20).
pub mod ports {
    /// First port of the low range.
    pub const LOW: u16 = 10_000;
    /// Number of ports in the low range, up to 29,999.
    pub const LOW_COUNT: u16 = 20_000;
    /// First port of the high range.
    pub const HIGH: u16 = 61_000;
    /// Number of ports in the high range, up to 65,535.
    pub const HIGH_COUNT: u16 = 4_536;
    /// How many ports are tried before a new flow is refused.
    pub const TRIES: u32 = 16;

    /// Maps any number to a port of the two ranges, every port equally often.
    #[inline(always)]
    pub const fn nth(number: u32) -> u16 {
        let total = LOW_COUNT as u32 + HIGH_COUNT as u32;
        #[expect(clippy::cast_possible_truncation, reason = "below 24,536")]
        let offset = (number % total) as u16;
        // Without a branch, which the verifier would follow both ways in each
        // round of the loop that tries ports.
        LOW + offset + (offset >= LOW_COUNT) as u16 * (HIGH - LOW - LOW_COUNT)
    }
}

const _: () = assert!(size_of::<MasqueradeKey<AddrV4>>() == 16);
const _: () = assert!(size_of::<MasqueradeKey<AddrV6>>() == 40);
pod!(MasqueradeKey<AddrV4>, MasqueradeKey<AddrV6>);

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn every_number_gives_a_port_of_the_two_ranges() {
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..24_536 {
            let port = ports::nth(number);
            assert!((10_000..30_000).contains(&port) || port >= 61_000, "{port}");
            seen.insert(port);
        }
        assert_eq!(seen.len(), 24_536);
        assert_eq!(ports::nth(u32::MAX), ports::nth(u32::MAX % 24_536));
    }
}
