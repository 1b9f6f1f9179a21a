//! SCTP's checksum, which covers the ports, but no addresses.
//!
//! A field of zero says that the sender leaves the checksum to the network
//! card, or to the kernel where the packet reaches one that cannot
//! (`CHECKSUM_PARTIAL`); programs cannot see that mark itself. It stays zero.
//! Of finished checksums one in 2^32 is zero too. Such a packet is taken for an
//! unfinished one; if its port changes, the receiver drops it.

use proxy_common::{
    checksum,
    counter::Counter,
    crc32c,
    net::{BePort, Protocol},
};

use crate::{
    counters::count,
    packet::{
        headers::{Headers, Part, Side, port_offset},
        ip::IpHeader,
        skb::Skb,
        verdict::Fault,
    },
};

/// Offset of the checksum in the header.
const CHECKSUM: u32 = 8;

/// Returns whether a packet is one of SCTP.
#[inline(always)]
pub fn is<A>(headers: &Headers<A>) -> bool {
    headers.ip.protocol == Protocol::SCTP
}

/// Overwrites the port of `side` and updates the checksum. Returns what that adds
/// to a sum over the packet.
///
/// The checksum of a fragmented packet is in the first fragment, but depends on
/// how long all of them are together, which only the last one tells.
#[inline(never)]
pub fn rewrite_port<F: IpHeader>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    side: Side,
    port: BePort,
) -> Result<u32, Fault> {
    let skb = *skb;
    let l4 = headers.ip.l4;
    if headers.ip.part == Part::First {
        count(Counter::SctpFragment);
        return Err(Fault);
    }
    let old: u32 = skb.read(l4).ok_or(Fault)?;
    let sum: u32 = skb.read(l4 + CHECKSUM).ok_or(Fault)?;
    skb.write(l4 + port_offset(side), port)?;
    let new: u32 = skb.read(l4).ok_or(Fault)?;
    let change = checksum::add(!old, new);
    if sum == 0 {
        return Ok(change);
    }
    let length = headers.ip.end.wrapping_sub(l4) as u16;
    let updated = crc32c::update(
        u32::from_le(sum),
        u32::from_le(old),
        u32::from_le(new),
        length,
    )
    .to_le();
    skb.write(l4 + CHECKSUM, updated)?;
    Ok(checksum::add(change, checksum::add(!sum, updated)))
}
