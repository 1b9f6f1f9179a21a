//! From bytes to [`Headers`].

use proxy_common::{
    checksum,
    family::{V4, V6},
    net::{AddrV4, AddrV6, BePort, Protocol},
};

use crate::{
    maps::tables::{Scratch, Tables},
    packet::{
        barrier::opaque,
        skb::{ETH_LEN, Link, MAX_OFFSET, Skb},
        verdict::Fault,
    },
    subprograms,
};

/// Bytes that are made readable in place: the usual headers, and an ICMP error
/// with the packet it quotes.
const PULL: u32 = 128;

const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
const ETHERTYPE_QINQ: u16 = 0x88a8_u16.to_be();

/// Which part of a datagram a packet holds.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// A later fragment: ports are those of the first one, if it was seen.
    Later,
}

/// An IP header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ip<A> {
    pub src: A,
    pub dst: A,
    /// Fragment identification, network order.
    pub id: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Offset of the packet's end. A frame may go on behind it.
    pub end: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Protocol that the fragment header names; the same for all fragments.
    pub fragment_protocol: Protocol,
    pub part: Part,
    /// The transport header is not all there or out of reach, or its checksum
    /// covers another destination. Ports are those that can be read, else zero.
    pub unreadable: bool,
}

/// What the datapath knows of a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Headers<A> {
    pub ip: Ip<A>,
    /// Offset of the IP header.
    pub l3: u32,
    /// Zero for protocols without ports.
    pub src_port: BePort,
    pub dst_port: BePort,
    /// Flags byte of the TCP header; of SCTP the flags that TCP would set for
    /// what the first chunk does; else zero.
    pub tcp_flags: u8,
}

/// Bits of [`Headers::tcp_flags`].
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

impl<A> Headers<A> {
    #[inline(always)]
    fn of_ip(ip: Ip<A>, l3: u32) -> Self {
        Self {
            ip,
            l3,
            src_port: BePort::ZERO,
            dst_port: BePort::ZERO,
            tcp_flags: 0,
        }
    }

    /// Whether the protocol has ports that frontends are known by.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        self.ip.protocol == Protocol::UDP || self.ip.protocol.has_connections()
    }

    /// A TCP segment, or an SCTP INIT, that opens a connection.
    #[inline(always)]
    pub fn opens_connection(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// A TCP segment, or an SCTP INIT ACK, that accepts a connection.
    #[inline(always)]
    pub fn accepts_connection(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
    }
}

/// Length of TCP's header without options.
const TCP_HEADER: u32 = 20;
/// Length of SCTP's header, which chunks follow.
pub const SCTP_HEADER: u32 = 12;

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

/// What differs between the families' headers.
pub trait IpHeader: Tables {
    /// Ethertype, network order.
    const ETHERTYPE: u16;
    /// Offsets of the addresses in the IP header.
    const SRC_OFFSET: u32;
    const DST_OFFSET: u32;
    /// The family's ICMP.
    const ICMP: Protocol;
    const IS_V6: bool;

    /// Reads the IP header of an ordinary packet at `l3`. `None`: any other.
    fn read_plain_ip(skb: Skb, l3: u32) -> Option<Ip<Self::Addr>>;

    /// Reads the IP header at `l3` and what leads to the transport header.
    fn read_ip(skb: Skb, l3: u32) -> Option<Ip<Self::Addr>>;

    /// Whether the header's own checksum is right, if it has one. The host throws
    /// the packet away if it is not.
    fn is_intact(skb: Skb, ip: &Ip<Self::Addr>, l3: u32) -> bool;

    /// Adds `difference` to the header's own checksum, if it has one.
    fn add_to_header_checksum(skb: Skb, l3: u32, difference: u32) -> Result<(), Fault>;
}

/// What follows the link-layer header.
pub struct Network {
    /// Offset of the IP header.
    pub l3: u32,
    /// Ethertype, network order.
    pub ethertype: u16,
    /// VLAN tags are still in the frame.
    pub tagged: bool,
}

/// Finds the IP header. Skips up to two VLAN tags that are still in the frame.
#[inline(always)]
pub fn network(skb: Skb) -> Option<Network> {
    skb.pull(PULL);
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

/// Reads a packet's headers to this CPU's scratch memory. Once in a program.
#[inline(always)]
pub fn to_scratch<F: IpHeader>(skb: Skb) -> Option<&'static mut Scratch<F::Addr>> {
    let scratch = F::scratch()?;
    read_headers::<F>(&skb, scratch)?;
    Some(scratch)
}

#[inline(never)]
fn read_headers<F: IpHeader>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<()> {
    let skb = *skb;
    let l3 = u32::from(opaque(network(skb)?.l3 as u8));
    scratch.headers = Headers::of_ip(F::read_ip(skb, l3)?, l3);
    let unreadable =
        scratch.headers.ip.unreadable || read_transport::<F>(skb, &mut scratch.headers).is_none();
    scratch.headers.ip.unreadable = opaque(unreadable);
    Some(())
}

/// [`IpHeader::is_intact`] of the packet in scratch memory.
#[inline(never)]
pub fn is_intact<F: IpHeader>(skb: &Skb, headers: &Headers<F::Addr>) -> bool {
    F::is_intact(*skb, &headers.ip, headers.l3)
}

/// Offset of a packet's end. The length from `start` on is in network order; of
/// packets that are to be cut it is zero if it has no room in its field.
#[inline(always)]
fn end(skb: Skb, start: u32, length: u16) -> u32 {
    if length == 0 && skb.gso_size() != 0 {
        skb.len()
    } else {
        start + u32::from(u16::from_be(length))
    }
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

/// IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct V4Header {
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: Protocol,
    checksum: u16,
    src: AddrV4,
    dst: AddrV4,
}

impl IpHeader for V4 {
    const ETHERTYPE: u16 = 0x0800_u16.to_be();
    const SRC_OFFSET: u32 = 12;
    const DST_OFFSET: u32 = 16;
    const ICMP: Protocol = Protocol::ICMP;
    const IS_V6: bool = false;

    #[inline(always)]
    fn read_plain_ip(skb: Skb, l3: u32) -> Option<Ip<AddrV4>> {
        Self::read_ip(skb, l3).filter(|ip| ip.part == Part::Whole && ip.protocol != Protocol::SCTP)
    }

    #[inline(always)]
    fn read_ip(skb: Skb, l3: u32) -> Option<Ip<AddrV4>> {
        let header: V4Header = skb.read(l3)?;
        let length = u32::from(header.version_ihl & 0x0f) * 4;
        if header.version_ihl >> 4 != 4 || length < 20 {
            return None;
        }
        let fragment = u16::from_be(header.fragment);
        let part = if fragment & 0x1fff != 0 {
            Part::Later
        } else if fragment & 0x2000 != 0 {
            Part::First
        } else {
            Part::Whole
        };
        Some(Ip {
            src: header.src,
            dst: header.dst,
            id: u32::from(header.id),
            l4: l3 + length,
            end: end(skb, l3, header.total_len),
            protocol: header.protocol,
            fragment_protocol: header.protocol,
            part,
            unreadable: false,
        })
    }

    #[inline(always)]
    fn is_intact(skb: Skb, ip: &Ip<AddrV4>, l3: u32) -> bool {
        const LONGEST: u32 = 60;
        let mut sum = 0;
        let mut offset = 0;
        while offset < LONGEST {
            if l3 + offset < ip.l4 {
                let Some(word) = skb.read::<u32>(l3 + offset) else {
                    return false;
                };
                sum = checksum::add(sum, word);
            }
            offset += 4;
        }
        checksum::fold(sum) == 0xffff
    }

    #[inline(always)]
    fn add_to_header_checksum(skb: Skb, l3: u32, difference: u32) -> Result<(), Fault> {
        let old: u16 = skb.read(l3 + 10).ok_or(Fault)?;
        skb.write(l3 + 10, checksum::update(old, difference))
    }
}

/// IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
struct V6Header {
    version_class_flow: [u8; 4],
    payload_len: u16,
    next: Protocol,
    hop_limit: u8,
    src: AddrV6,
    dst: AddrV6,
}

/// The first eight bytes of an IPv6 extension header, named as in a fragment
/// header (RFC 8200 section 4.5). None is shorter.
#[repr(C)]
#[derive(Clone, Copy)]
struct V6Extension {
    next: Protocol,
    /// Not of fragment headers.
    length: u8,
    offset: u16,
    id: u32,
}

impl V6Extension {
    /// Of a routing header (RFC 8200 section 4.4).
    #[inline(always)]
    fn segments_left(self) -> u8 {
        let [_kind, left] = self.offset.to_ne_bytes();
        left
    }
}

/// Whether the number is one of an extension header that leads to another one.
#[inline(always)]
fn is_extension(protocol: Protocol) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    )
}

/// Goes on behind the extension header that is next, if there is one that can be
/// read. Whether there was.
#[inline(always)]
pub fn follow_extension(skb: Skb, ip: &mut Ip<AddrV6>) -> bool {
    if ip.part == Part::Later || !is_extension(ip.protocol) {
        return false;
    }
    // Each begins with its successor's number and its own length.
    skb.pull(ip.l4 + PULL);
    let Some(extension) = skb
        .read::<V6Extension>(ip.l4)
        .filter(|_| ip.l4 <= MAX_OFFSET - LONGEST_EXTENSION)
    else {
        ip.unreadable = true;
        return false;
    };
    let words = u32::from(extension.length);
    let length = match ip.protocol {
        AUTHENTICATION => (words + 2) * 4,
        FRAGMENT => {
            let offset = u16::from_be(extension.offset);
            ip.id = extension.id;
            ip.fragment_protocol = extension.next;
            // Offset 0 without "more" is an ordinary packet (RFC 6946).
            if offset & 0xfff8 != 0 {
                ip.part = Part::Later;
            } else if offset & 1 != 0 {
                ip.part = Part::First;
            }
            8
        }
        ROUTING => {
            // The transport checksum covers the last destination.
            ip.unreadable |= extension.segments_left() != 0;
            (words + 1) * 8
        }
        _ => (words + 1) * 8,
    };
    ip.l4 += length;
    ip.protocol = extension.next;
    true
}

/// Reads the header itself.
#[inline(always)]
fn read_fixed(skb: Skb, l3: u32) -> Option<Ip<AddrV6>> {
    let header: V6Header = skb.read(l3)?;
    (header.version_class_flow[0] >> 4 == 6).then_some(Ip {
        src: header.src,
        dst: header.dst,
        id: 0,
        l4: l3 + 40,
        end: end(skb, l3 + 40, header.payload_len),
        protocol: header.next,
        fragment_protocol: header.next,
        part: Part::Whole,
        unreadable: false,
    })
}

/// Extension headers of a packet, at most: RFC 8200 section 4.1 recommends no
/// more.
const MAX_EXTENSIONS: u32 = 6;
/// Bytes of the longest extension header.
const LONGEST_EXTENSION: u32 = 256 * 8;
const HOP_BY_HOP: Protocol = Protocol(0);
const ROUTING: Protocol = Protocol(43);
const FRAGMENT: Protocol = Protocol(44);
const AUTHENTICATION: Protocol = Protocol(51);
const DESTINATION: Protocol = Protocol(60);

impl IpHeader for V6 {
    const ETHERTYPE: u16 = 0x86dd_u16.to_be();
    const SRC_OFFSET: u32 = 8;
    const DST_OFFSET: u32 = 24;
    const ICMP: Protocol = Protocol::ICMPV6;
    const IS_V6: bool = true;

    #[inline(always)]
    fn read_plain_ip(skb: Skb, l3: u32) -> Option<Ip<AddrV6>> {
        let ip = read_fixed(skb, l3)?;
        matches!(
            ip.protocol,
            Protocol::TCP | Protocol::UDP | Protocol::ICMPV6
        )
        .then_some(ip)
    }

    #[inline(always)]
    fn read_ip(skb: Skb, l3: u32) -> Option<Ip<AddrV6>> {
        let mut ip = read_fixed(skb, l3)?;
        let mut count = 0;
        while count < MAX_EXTENSIONS && subprograms::follow_extension(skb, &mut ip) {
            count += 1;
        }
        // What is behind more headers than these is out of reach.
        if ip.part != Part::Later && is_extension(ip.protocol) {
            ip.unreadable = true;
        }
        ip.fragment_protocol = opaque(ip.fragment_protocol);
        ip.unreadable = opaque(ip.unreadable);
        Some(ip)
    }

    #[inline(always)]
    fn is_intact(_skb: Skb, _ip: &Ip<AddrV6>, _l3: u32) -> bool {
        true
    }

    #[inline(always)]
    fn add_to_header_checksum(_skb: Skb, _l3: u32, _difference: u32) -> Result<(), Fault> {
        Ok(())
    }
}
