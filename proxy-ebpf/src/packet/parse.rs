//! From bytes to [`Headers`].

use proxy_common::net::{BePort, Protocol};

use crate::packet::{
    barrier::opaque,
    headers::{Headers, Ip, Part, SCTP_HEADER, tcp},
    ip::{IpHeader, PULL},
    skb::{ETH_LEN, Link, Skb},
};

/// `gso_size` of SCTP: a list of packets that its sender cut itself.
const GSO_BY_FRAGS: u32 = 0xffff;

/// Length of the IP packet, or of the longest segment that it will be cut to.
/// 0 if that is not known; the look-up then does not compare it.
#[inline(never)]
pub fn longest<F: IpHeader>(skb: &Skb, headers: &Headers<F::Addr>) -> u32 {
    let segment = skb.gso_size();
    if segment == 0 {
        return skb.len() - headers.l3;
    }
    if segment == GSO_BY_FRAGS {
        return 0;
    }
    let transport = if headers.ip.protocol == Protocol::TCP {
        let offset: u8 = skb.read(headers.ip.l4 + 12).unwrap_or(0);
        u32::from(offset >> 4) * 4
    } else {
        8
    };
    headers.ip.l4 - headers.l3 + transport + segment
}

const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
const ETHERTYPE_QINQ: u16 = 0x88a8_u16.to_be();

/// Length of TCP's header without options.
const TCP_HEADER: u32 = 20;

/// The flags that a TCP segment would have which does what SCTP's first chunk
/// does (RFC 9260 section 3.2). Those that matter come alone (INIT, INIT ACK,
/// SHUTDOWN COMPLETE) or where nothing opens or ends before them.
#[inline(always)]
fn flags_of_chunk(kind: u8) -> u8 {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const SHUTDOWN: u8 = 7;
    const SHUTDOWN_ACK: u8 = 8;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match kind {
        INIT => tcp::SYN,
        INIT_ACK => tcp::SYN | tcp::ACK,
        ABORT | SHUTDOWN_COMPLETE => tcp::RST,
        SHUTDOWN | SHUTDOWN_ACK => tcp::FIN | tcp::ACK,
        _ => tcp::ACK,
    }
}

/// The protocol that follows the link-layer header.
pub struct Network {
    /// Offset of the IP header.
    pub l3: u32,
    /// Ethertype, network order.
    pub ethertype: u16,
    /// VLAN tags are still in the frame.
    pub tagged: bool,
}

/// Ethernet, IPv4 and TCP header. Of a segment that a socket sends the headers are
/// linear and nothing else: to pull more of it allocates its head anew. IPv6 and
/// options are linear where this is, or the slow path sees to the packet.
pub const PLAIN: u32 = 54;

/// Finds the IP header once so many bytes can be read. Skips up to two VLAN tags
/// that are still in the frame.
#[inline(always)]
pub fn network(skb: Skb, pulled: u32) -> Option<Network> {
    skb.pull(pulled);
    let mut network = Network {
        l3: 0,
        ethertype: skb.protocol(),
        tagged: false,
    };
    if skb.link == Link::None {
        return Some(network);
    }
    network.l3 = ETH_LEN;
    network.ethertype = skb.read(ETH_LEN - 2)?;
    if is_tag(network.ethertype) {
        network.tagged = true;
        network.ethertype = skb.read(ETH_LEN + 2)?;
        network.l3 = ETH_LEN + 4;
        if is_tag(network.ethertype) {
            network.ethertype = skb.read(ETH_LEN + 6)?;
            network.l3 = ETH_LEN + 8;
        }
    }
    Some(network)
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

/// Reads the headers of an ordinary packet. `None`: anything else, the slow
/// path sees to it.
#[inline(always)]
pub fn plain<F: IpHeader>(skb: Skb, l3: u32) -> Option<Headers<F::Addr>> {
    let mut headers = Headers::of_ip(F::read_plain_ip(skb, l3)?, l3);
    read_transport::<F>(skb, &mut headers)?;
    Some(headers)
}

/// Reads the transport header. `None`: there is not all of it. What can be read
/// is in `headers` all the same.
#[inline(always)]
fn read_transport<F: IpHeader>(skb: Skb, headers: &mut Headers<F::Addr>) -> Option<()> {
    let Ip {
        l4, end, protocol, ..
    } = headers.ip;
    if headers.ip.part == Part::Later {
        return Some(());
    }
    let length = match protocol {
        Protocol::TCP => TCP_HEADER,
        // With the type of the first chunk.
        Protocol::SCTP => SCTP_HEADER + 4,
        Protocol::UDP => 8,
        protocol if protocol == F::ICMP => 8,
        _ => return Some(()),
    };
    if headers.has_ports() && l4 + 4 <= end {
        (headers.src_port, headers.dst_port) = ports(skb, l4)?;
    }
    if l4 + length > end {
        return None;
    }
    if protocol == Protocol::TCP {
        headers.tcp_flags = skb.read(l4 + 13)?;
    } else if protocol == Protocol::SCTP {
        headers.tcp_flags = flags_of_chunk(skb.read(l4 + SCTP_HEADER)?);
    }
    Some(())
}

/// [`IpHeader::is_intact`] of the packet in scratch memory.
#[inline(never)]
pub fn is_intact<F: IpHeader>(skb: &Skb, headers: &Headers<F::Addr>) -> bool {
    F::is_intact(*skb, &headers.ip, headers.l3)
}

/// Source and destination port of the transport header at `l4`.
#[inline(always)]
pub fn ports(skb: Skb, l4: u32) -> Option<(BePort, BePort)> {
    let word: u32 = skb.read(l4)?;
    let bytes = word.to_ne_bytes();
    Some((
        BePort::from_bits(u16::from_ne_bytes([bytes[0], bytes[1]])),
        BePort::from_bits(u16::from_ne_bytes([bytes[2], bytes[3]])),
    ))
}

/// Reads the headers of any packet, on the slow path.
#[inline(never)]
pub fn read<F: IpHeader>(skb: &Skb, headers: &mut Headers<F::Addr>) -> Option<()> {
    let skb = *skb;
    let l3 = u32::from(opaque(network(skb, PULL)?.l3 as u8));
    *headers = Headers::of_ip(F::read_ip(skb, l3)?, l3);
    let unreadable = headers.ip.unreadable || read_transport::<F>(skb, headers).is_none();
    headers.ip.unreadable = opaque(unreadable);
    Some(())
}
