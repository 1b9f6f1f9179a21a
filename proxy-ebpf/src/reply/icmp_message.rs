//! ICMP errors of our own, which quote the packet that they are about.

use proxy_common::{checksum, net::Protocol};

use super::family::ReplyFamily;
use crate::{
    maps::scratch::Scratch,
    packet::{
        headers,
        skb::{self, BUFFER, Skb},
        sum::{pseudo_header, sum, sum_of},
        verdict::Fault,
    },
};

/// Bytes of the transport header that an ICMP error quotes.
const QUOTED: u32 = 8;
/// The same of TCP: the header without options.
const QUOTED_TCP: u32 = 20;
/// The same of SCTP's INIT: its sender wants to see the tag that it chose
/// (RFC 9260 section 10).
const QUOTED_INIT: u32 = headers::SCTP_HEADER + 8;
/// The longest quote: an IP header with a few options or extension headers.
const MAX_QUOTE: u32 = 96;
const _: () = assert!(MAX_QUOTE <= BUFFER);
const ICMP_HEADER: u32 = 8;

/// Turns the packet into an ICMP error that quotes it.
#[inline(never)]
pub fn error<F: ReplyFamily>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    mut header: Icmp,
) -> Result<(), Fault> {
    let skb = *skb;
    let Scratch {
        headers, buffer, ..
    } = scratch;
    // A packet whose checksum is still to be filled in cannot be cut before
    // the place of it.
    let transport = match headers.ip.protocol {
        Protocol::TCP => QUOTED_TCP,
        Protocol::SCTP if headers.opens_connection() => QUOTED_INIT,
        Protocol::SCTP => headers::SCTP_HEADER,
        _ => QUOTED,
    };
    // There may be less, which is quoted in whole words.
    let there = headers.ip.end.saturating_sub(headers.ip.l4);
    let quote = headers.ip.l4 - headers.l3 + (transport.min(there) & !3);
    if quote > MAX_QUOTE {
        return Err(Fault);
    }
    let length = ICMP_HEADER + quote;
    skb.resize(headers.l3 + F::HEADER + length)?;
    // Made room for by hand: the kernel's helper for that refuses frames with
    // VLAN tags in them.
    skb.copy_out(headers.l3, buffer, quote)?;
    skb.copy_in(headers.l3 + F::HEADER + ICMP_HEADER, buffer, quote)?;
    let mut partial = sum_of(buffer, skb::length_in_buffer(quote), 0)?;
    partial = sum(&header, partial)?;
    if F::IS_V6 {
        let pseudo = pseudo_header(&headers.ip.dst, &headers.ip.src, F::ICMP, length);
        partial = checksum::add(partial, pseudo);
    }
    header.checksum = !checksum::fold(partial);
    F::write_header(skb, headers, F::ICMP, length)?;
    skb.write(headers.l3 + F::HEADER, header)
}

/// The header of an ICMP error.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Icmp {
    kind: u8,
    code: u8,
    checksum: u16,
    /// The largest packet that would pass, in "too big" messages; network order.
    mtu: u32,
}

impl Icmp {
    #[inline(always)]
    pub fn new(kind: u8, code: u8, mtu: u32) -> Self {
        Self {
            kind,
            code,
            checksum: 0,
            mtu: mtu.to_be(),
        }
    }
}
