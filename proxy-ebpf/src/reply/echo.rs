//! Echo replies for the addresses of Services: who tests whether one is there
//! asks by ping, and gets the answer a host would give.

use aya_ebpf::helpers::generated::bpf_csum_update;
use proxy_common::{checksum, counter::Counter};

use crate::{
    counters::count,
    flow::fragment::{self, Hook},
    lookup::frontend::Destination,
    maps::scratch::Scratch,
    packet::{
        headers::{Headers, Part},
        skb::Skb,
        verdict::{Fault, Outcome},
    },
    reply::{
        family::{ReplyFamily, TTL},
        refuse::{self, To},
    },
};

/// Offset of the checksum in both families' ICMP header.
const CHECKSUM: u32 = 2;
/// Length of IPv6's fragment header.
const FRAGMENT_HEADER: u32 = 8;

/// Answers the ICMP packet in scratch memory, if it is an echo request to an
/// address that we answer for. `None`: it is anything else.
///
/// A fragmented request is answered fragment by fragment: what differs between
/// request and reply is in the first one, but for the addresses.
#[inline(never)]
pub fn answer<F: ReplyFamily>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    to: To,
) -> Option<Outcome> {
    let hook = match to {
        To::Sender => Hook::Ingress,
        To::Host | To::Client => Hook::Egress,
    };
    let part = scratch.headers.ip.part;
    let is_request = if part == Part::Later {
        fragment::complete::<F>(&mut scratch.headers, hook)
    } else {
        skb.read::<u8>(scratch.headers.ip.l4) == Some(F::ECHO_REQUEST)
    };
    if !is_request
        || !has_plain_header::<F>(&scratch.headers)
        || F::look_up(&scratch.headers, &mut scratch.frontend) != Destination::UnknownPort
    {
        return None;
    }
    if let Err(outcome) = refuse::may_answer::<F>(skb, &scratch.headers) {
        return Some(outcome);
    }
    fragment::remember::<F>(&scratch.headers, hook);
    if part != Part::Later {
        count(Counter::EchoAnswered);
    }
    Some(match turn_round::<F>(skb, &scratch.headers) {
        Ok(()) => refuse::send(*skb, to),
        Err(fault) => fault.into(),
    })
}

/// Returns whether the IP header has no options and no extensions, which would have to
/// be turned round, too.
#[inline(always)]
fn has_plain_header<F: ReplyFamily>(headers: &Headers<F::Addr>) -> bool {
    let mut length = F::HEADER;
    if F::IS_V6 && headers.ip.part != Part::Whole {
        length += FRAGMENT_HEADER;
    }
    headers.ip.l4 == headers.l3 + length
}

/// Makes the reply of the request.
#[inline(never)]
fn turn_round<F: ReplyFamily>(skb: &Skb, headers: &Headers<F::Addr>) -> Result<(), Fault> {
    let skb = *skb;
    let (l3, l4) = (headers.l3, headers.ip.l4);
    skb.write(l3 + F::SRC_OFFSET, headers.ip.dst)?;
    skb.write(l3 + F::DST_OFFSET, headers.ip.src)?;
    // The word that the hop limit is in.
    let (at, byte) = if F::IS_V6 { (6, 1) } else { (8, 0) };
    let change = change_byte(skb, l3 + at, byte, TTL)?;
    F::add_to_header_checksum(skb, l3, change)?;
    if F::IS_V6 {
        // SAFETY: the context is valid; the helper does nothing for packets
        // without a sum that a network card gave.
        unsafe { bpf_csum_update(skb.raw(), change) };
    }
    if headers.ip.part == Part::Later {
        return Ok(());
    }
    let change = change_byte(skb, l4, 0, F::ECHO_REPLY)?;
    skb.add_to_checksum(l4 + CHECKSUM, change, 0)
}

/// Overwrites one byte of the word at `offset`, and returns what that adds to
/// a sum over it.
#[inline(always)]
fn change_byte(skb: Skb, offset: u32, byte: u32, value: u8) -> Result<u32, Fault> {
    let old: u16 = skb.read(offset).ok_or(Fault)?;
    skb.write(offset + byte, value)?;
    let new: u16 = skb.read(offset).ok_or(Fault)?;
    Ok(checksum::add(u32::from(!old), u32::from(new)))
}
