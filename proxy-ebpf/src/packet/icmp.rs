//! ICMP messages as bytes.

use proxy_common::net::BePort;

use crate::packet::{
    headers::{Headers, Ip, Part},
    ip::IpHeader,
    skb::Skb,
};

/// Offset of the checksum in both families' ICMP header.
pub const CHECKSUM: u32 = 2;

pub const V4_REDIRECT: u8 = 5;
pub const V6_REDIRECT: u8 = 137;

/// Returns whether this ICMP message is an error that quotes a packet, or a redirect.
#[inline(always)]
pub fn is_error<F: IpHeader>(skb: Skb, headers: &Headers<F::Addr>) -> bool {
    if headers.ip.part == Part::Later {
        return false;
    }
    let Some(kind) = skb.read::<u8>(headers.ip.l4) else {
        return false;
    };
    if F::IS_V6 {
        matches!(kind, 1..=4) || kind == V6_REDIRECT
    } else {
        matches!(kind, 3 | 4 | 11 | 12) || kind == V4_REDIRECT
    }
}

/// Returns whether this message keeps the link itself running: neighbour and router
/// discovery, and membership of groups. Not ours, whatever it is about (E31).
#[inline(always)]
pub fn is_of_link<F: IpHeader>(skb: Skb, headers: &Headers<F::Addr>) -> bool {
    F::IS_V6
        && headers.ip.part == Part::Whole
        && skb
            .read::<u8>(headers.ip.l4)
            .is_some_and(|kind| matches!(kind, 130..=136 | 143))
}

/// The packet that an error quotes.
#[repr(C)]
pub struct Quote<A> {
    pub ip: Ip<A>,
    pub l3: u32,
    pub src_port: BePort,
    pub dst_port: BePort,
}
