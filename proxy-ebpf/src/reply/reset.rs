//! The TCP reset of a port where nobody listens.

use proxy_common::{
    checksum,
    net::{BePort, Protocol},
};

use super::family::ReplyFamily;
use crate::packet::{
    headers::{Headers, tcp},
    skb::Skb,
    sum::{pseudo_header, sum},
    verdict::Fault,
};

/// TCP header without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    src: BePort,
    dst: BePort,
    sequence: u32,
    acknowledgement: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// Turns the packet into the reset that a closed port would send (RFC 9293
/// section 3.5.2).
#[inline(never)]
pub fn reset<F: ReplyFamily>(skb: &Skb, headers: &Headers<F::Addr>) -> Result<(), Fault> {
    let skb = *skb;
    let old: Tcp = skb.read(headers.ip.l4).ok_or(Fault)?;
    let segment = (headers.ip.end)
        .wrapping_sub(headers.ip.l4)
        .wrapping_sub(u32::from(old.offset >> 4) * 4);
    let control = u32::from(old.flags & tcp::SYN != 0) + u32::from(old.flags & tcp::FIN != 0);
    let (sequence, acknowledgement, flags) = if old.flags & tcp::ACK == 0 {
        let next = u32::from_be(old.sequence)
            .wrapping_add(segment)
            .wrapping_add(control);
        (0, next.to_be(), tcp::RST | tcp::ACK)
    } else {
        (old.acknowledgement, 0, tcp::RST)
    };
    let mut new = Tcp {
        src: old.dst,
        dst: old.src,
        sequence,
        acknowledgement,
        offset: 5 << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let length = size_of::<Tcp>() as u32;
    let pseudo = pseudo_header(&headers.ip.dst, &headers.ip.src, Protocol::TCP, length);
    new.checksum = !checksum::fold(sum(&new, pseudo)?);
    let l4 = headers.l3 + F::HEADER;
    skb.resize(l4 + length)?;
    F::write_header(skb, headers, Protocol::TCP, length)?;
    skb.write(l4, new)
}
