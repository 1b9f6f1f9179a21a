//! The IP headers of both families.

use aya_ebpf::bindings::__sk_buff;
use proxy_common::{
    checksum,
    family::{Family, V4, V6},
    net::{AddrV4, AddrV6, Protocol},
};

use crate::packet::{
    barrier::opaque,
    headers::{Ip, Part},
    skb::{MAX_OFFSET, Skb},
    verdict::Fault,
};

/// Bytes that are made readable in place: the usual headers, and an ICMP error
/// with the packet it quotes.
pub const PULL: u32 = 128;

/// The differences between the families' headers.
pub trait IpHeader: Family {
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

    /// Returns whether the header's own checksum is right, if it has one. The host throws
    /// the packet away if it is not.
    fn is_intact(skb: Skb, ip: &Ip<Self::Addr>, l3: u32) -> bool;

    /// Adds `difference` to the header's own checksum, if it has one.
    fn add_to_header_checksum(skb: Skb, l3: u32, difference: u32) -> Result<(), Fault>;
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

/// Returns whether the number is one of an extension header that leads to another one.
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
fn follow_extension(skb: Skb, ip: &mut Ip<AddrV6>) -> bool {
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

/// [`follow_extension`] as a function that the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow_extension_v6(skb: *mut __sk_buff, ip: *mut Ip<AddrV6>) -> u32 {
    // SAFETY: the verifier sees to it that this is null or valid, and the caller has
    // lent it.
    unsafe { ip.as_mut() }.map_or(0, |ip| follow_extension(Skb::of_context(skb), ip).into())
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
        while count < MAX_EXTENSIONS && follow_extension_v6(skb.raw(), &raw mut ip) != 0 {
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
