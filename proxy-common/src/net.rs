//! Ports, protocols and addresses as they stand in a packet.

use core::fmt;

use crate::pod;

/// Transport port: two bytes in network order.
#[repr(C, align(2))]
#[derive(Clone, Copy, Eq, PartialOrd, Ord, Default)]
pub struct BePort {
    bytes: [u8; 2],
}

impl PartialEq for BePort {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.to_bits() == other.to_bits()
    }
}

impl core::hash::Hash for BePort {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl BePort {
    /// No port: the wildcard of an address, or a protocol without ports.
    pub const ZERO: Self = Self { bytes: [0; 2] };

    /// From a port in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self {
            bytes: port.to_be_bytes(),
        }
    }

    /// From the two bytes of the packet read as one native integer.
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Self {
        Self {
            bytes: bits.to_ne_bytes(),
        }
    }

    /// The port in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.bytes)
    }

    /// The two bytes of the packet as one native integer.
    #[inline(always)]
    pub const fn to_bits(self) -> u16 {
        u16::from_ne_bytes(self.bytes)
    }
}

impl fmt::Debug for BePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// IP protocol number (IANA). A plain byte, because it comes from packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Stands for every protocol in a wildcard frontend.
    pub const ANY: Self = Self(0);
    pub const ICMP: Self = Self(1);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const ICMPV6: Self = Self(58);
    pub const SCTP: Self = Self(132);

    /// Returns whether packets of the protocol open and close connections. Such a flow
    /// stays with its backend until it is over (S79).
    #[inline(always)]
    pub const fn has_connections(self) -> bool {
        matches!(self, Self::TCP | Self::SCTP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::SCTP => f.write_str("SCTP"),
            Self(other) => write!(f, "{other}"),
        }
    }
}

/// An IP address as it stands in a packet, of either family.
///
/// The word accessors exist because the BPF back end compares and copies
/// aligned 32-bit words in one instruction each, but byte arrays byte by byte.
pub trait Address: Copy + Eq + Ord + core::hash::Hash + fmt::Debug + 'static {
    /// All bytes zero.
    const ZERO: Self;
    /// All bits one: no host has this address.
    const ONES: Self;
    /// Length in 32-bit words.
    const WORDS: usize;

    /// Word `index` of the address, as a native integer over network bytes.
    fn word(&self, index: usize) -> u32;

    /// Returns whether all bytes are zero.
    #[inline(always)]
    fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

/// IPv4 address, network order.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default)]
pub struct AddrV4 {
    pub octets: [u8; 4],
}

/// IPv6 address, network order.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default)]
pub struct AddrV6 {
    pub octets: [u8; 16],
}

impl Address for AddrV4 {
    const ZERO: Self = Self { octets: [0; 4] };
    const ONES: Self = Self { octets: [0xff; 4] };
    const WORDS: usize = 1;

    #[inline(always)]
    fn word(&self, _index: usize) -> u32 {
        u32::from_ne_bytes(self.octets)
    }
}

impl Address for AddrV6 {
    const ZERO: Self = Self { octets: [0; 16] };
    const ONES: Self = Self { octets: [0xff; 16] };
    const WORDS: usize = 4;

    #[inline(always)]
    fn word(&self, index: usize) -> u32 {
        // SAFETY: sixteen bytes are four words, of which every value is valid.
        let words: [u32; 4] = unsafe { core::mem::transmute(self.octets) };
        words[index & 3]
    }
}

impl PartialEq for AddrV4 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.word(0) == other.word(0)
    }
}

impl Eq for AddrV4 {}

impl PartialEq for AddrV6 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let difference = (self.word(0) ^ other.word(0))
            | (self.word(1) ^ other.word(1))
            | (self.word(2) ^ other.word(2))
            | (self.word(3) ^ other.word(3));
        unsplit(difference) == 0
    }
}

/// The same number. Keeps the compiler from making a chain of branches of a
/// comparison in a BPF program, where the verifier would follow each of them.
#[inline(always)]
fn unsplit(number: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut number = u64::from(number);
        // One instruction that changes nothing: without any, the debug
        // information would have two lines at one place.
        // SAFETY: changes nothing.
        unsafe {
            core::arch::asm!(
                "{0} &= -1",
                inout(reg) number,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        #[expect(clippy::cast_possible_truncation, reason = "widened above")]
        let number = number as u32;
        number
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

impl Eq for AddrV6 {}

impl core::hash::Hash for AddrV4 {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.octets.hash(state);
    }
}

impl core::hash::Hash for AddrV6 {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.octets.hash(state);
    }
}

impl PartialOrd for AddrV4 {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for AddrV4 {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.octets.cmp(&other.octets)
    }
}

impl PartialOrd for AddrV6 {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for AddrV6 {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.octets.cmp(&other.octets)
    }
}

impl fmt::Debug for AddrV4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv4Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for AddrV6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv6Addr::from(*self).fmt(f)
    }
}

impl From<core::net::Ipv4Addr> for AddrV4 {
    fn from(addr: core::net::Ipv4Addr) -> Self {
        Self {
            octets: addr.octets(),
        }
    }
}

impl From<core::net::Ipv6Addr> for AddrV6 {
    fn from(addr: core::net::Ipv6Addr) -> Self {
        Self {
            octets: addr.octets(),
        }
    }
}

impl From<AddrV4> for core::net::Ipv4Addr {
    fn from(addr: AddrV4) -> Self {
        addr.octets.into()
    }
}

impl From<AddrV6> for core::net::Ipv6Addr {
    fn from(addr: AddrV6) -> Self {
        addr.octets.into()
    }
}

pod!(AddrV4, AddrV6, BePort, Protocol);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_keep_network_order() {
        assert_eq!(BePort::new(0x1234).to_bits().to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(BePort::new(443).get(), 443);
        assert_eq!(
            BePort::from_bits(BePort::new(53).to_bits()),
            BePort::new(53)
        );
    }

    #[test]
    fn every_octet_counts_in_comparisons() {
        for octet in 0..16 {
            let mut other = AddrV6::ZERO;
            other.octets[octet] = 1;
            assert_ne!(other, AddrV6::ZERO, "octet {octet}");
        }
        for octet in 0..4 {
            let mut other = AddrV4::ZERO;
            other.octets[octet] = 1;
            assert_ne!(other, AddrV4::ZERO, "octet {octet}");
        }
    }
}
