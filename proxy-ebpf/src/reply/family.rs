//! The differences between answers of the two families.

use proxy_common::{
    checksum,
    family::{V4, V6},
    net::{AddrV4, AddrV6, Address, Protocol},
};

use crate::{
    lookup::Lookup,
    packet::{headers::Headers, skb::Skb, sum::sum, verdict::Fault},
};

/// A family's constants and headers of answers.
pub trait ReplyFamily: Lookup {
    /// Length of the IP header of an answer.
    const HEADER: u32;
    /// ICMP type and code "port unreachable".
    const PORT_UNREACHABLE: (u8, u8);
    /// ICMP type and code "administratively prohibited".
    const PROHIBITED: (u8, u8);
    /// ICMP type and code "fragmentation needed" and "packet too big".
    const TOO_BIG: (u8, u8);
    /// ICMP types of echo messages.
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;

    /// Returns whether the address can be one host's: not those of many, of the loopback,
    /// of nobody yet, and IPv4's class E.
    fn is_single_host(addr: &Self::Addr) -> bool;

    /// ICMP messages that must not be answered, because they are errors or
    /// keep the network itself running (E31).
    fn is_never_answered(skb: Skb, headers: &Headers<Self::Addr>) -> bool;

    /// Writes the answer's IP header over the packet's, addresses swapped.
    fn write_header(
        skb: Skb,
        headers: &Headers<Self::Addr>,
        protocol: Protocol,
        payload: u32,
    ) -> Result<(), Fault>;
}

/// Hop limit of answers.
pub const TTL: u8 = 64;

impl ReplyFamily for V4 {
    const HEADER: u32 = 20;
    const PORT_UNREACHABLE: (u8, u8) = (3, 3);
    const PROHIBITED: (u8, u8) = (3, 13);
    const TOO_BIG: (u8, u8) = (3, 4);
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    #[inline(always)]
    fn is_single_host(addr: &AddrV4) -> bool {
        let first = u32::from_be(addr.word(0)) >> 24;
        !matches!(first, 0 | 127 | 224..)
    }

    #[inline(always)]
    fn is_never_answered(skb: Skb, headers: &Headers<AddrV4>) -> bool {
        headers.ip.protocol == Protocol::ICMP
            && skb
                .read::<u8>(headers.ip.l4)
                .is_none_or(|kind| kind != Self::ECHO_REQUEST)
    }

    #[inline(always)]
    fn write_header(
        skb: Skb,
        headers: &Headers<AddrV4>,
        protocol: Protocol,
        payload: u32,
    ) -> Result<(), Fault> {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Header {
            version_ihl: u8,
            tos: u8,
            total_len: u16,
            id: u16,
            fragment: u16,
            ttl: u8,
            protocol: u8,
            checksum: u16,
            src: AddrV4,
            dst: AddrV4,
        }
        let mut header = Header {
            version_ihl: 0x45,
            tos: 0,
            total_len: ((Self::HEADER + payload) as u16).to_be(),
            id: 0,
            fragment: 0x4000_u16.to_be(),
            ttl: TTL,
            protocol: protocol.0,
            checksum: 0,
            src: headers.ip.dst,
            dst: headers.ip.src,
        };
        header.checksum = !checksum::fold(sum(&header, 0)?);
        skb.write(headers.l3, header)
    }
}

impl ReplyFamily for V6 {
    const HEADER: u32 = 40;
    const PORT_UNREACHABLE: (u8, u8) = (1, 4);
    const PROHIBITED: (u8, u8) = (1, 1);
    const TOO_BIG: (u8, u8) = (2, 0);
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    #[inline(always)]
    fn is_single_host(addr: &AddrV6) -> bool {
        const MAPPED: u32 = 0xffff_u32.to_be();
        let group = u32::from_be(addr.word(0)) >> 24 == 0xff;
        let unspecified_or_loopback = addr.word(2) == 0 && u32::from_be(addr.word(3)) <= 1;
        let special =
            addr.word(0) | addr.word(1) == 0 && (addr.word(2) == MAPPED || unspecified_or_loopback);
        !group && !special
    }

    #[inline(always)]
    fn is_never_answered(skb: Skb, headers: &Headers<AddrV6>) -> bool {
        headers.ip.protocol == Protocol::ICMPV6
            && skb
                .read::<u8>(headers.ip.l4)
                .is_none_or(|kind| kind != Self::ECHO_REQUEST)
    }

    #[inline(always)]
    fn write_header(
        skb: Skb,
        headers: &Headers<AddrV6>,
        protocol: Protocol,
        payload: u32,
    ) -> Result<(), Fault> {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Header {
            version_class_flow: u32,
            payload_len: u16,
            next: u8,
            hop_limit: u8,
            src: AddrV6,
            dst: AddrV6,
        }
        skb.write(
            headers.l3,
            Header {
                version_class_flow: 0x6000_0000_u32.to_be(),
                payload_len: (payload as u16).to_be(),
                next: protocol.0,
                hop_limit: TTL,
                src: headers.ip.dst,
                dst: headers.ip.src,
            },
        )
    }
}
