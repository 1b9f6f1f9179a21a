//! Answers in the place of a Service that cannot: a TCP reset, or an ICMP
//! error that quotes the packet as its sender knows it (S43–S46).

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::generated::{
        bpf_csum_diff, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_skb_change_tail,
    },
};
use proxy_common::{
    checksum,
    counter::Counter,
    family::{V4, V6},
    net::{AddrV4, AddrV6, Address, BePort, Protocol},
};

use crate::{
    counters::count,
    lookup::Lookup,
    maps::{refusals, scratch::Scratch},
    packet::{
        barrier::opaque,
        headers::{self, Headers, Part, tcp},
        hint::{self, Hint},
        skb::{self, Addressee, BUFFER, Link, Skb},
        verdict::{Fault, Opened, Outcome},
    },
};

/// The side that the refused packet came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// In by this device: the answer goes out by it.
    Sender,
    /// From a process of this host: the answer comes in by this device.
    Host,
    /// From a client for whose backend it leaves by this device: the answer comes
    /// in by it, as the backend's own would, and is translated on its way.
    Client,
}

/// Refusals that one CPU sends in a tick of the clock.
const LIMIT: u64 = 128;
/// Those of them that may go to one client.
const BURST: u64 = 64;
/// The same if it has just wanted more than it may have.
const SHARE: u64 = 16;
/// How long that is remembered, in milliseconds: a few ticks, which are up to
/// ten milliseconds long.
const RECENT: u64 = 16;

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

/// Ends the way of a packet that opened no flow, and tells its sender where it
/// is to be told. Never answers broadcasts, resets, ICMP errors, and what no
/// single host sent.
#[inline(never)]
pub fn answer<F: Refusal>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    opened: Opened,
    to: To,
) -> Outcome {
    let skb = *skb;
    let headers = &scratch.headers;
    let Some(reason) = opened.reason() else {
        return Outcome::DROP_SILENTLY;
    };
    count(reason);
    if matches!(
        opened,
        Opened::NoLocalEndpoint | Opened::Denied | Opened::Unallocated
    ) || headers.tcp_flags & tcp::RST != 0
        || to == To::Sender && skb.addressee() == Addressee::Many
        || F::is_never_answered(skb, headers)
    {
        return Outcome::DROP_SILENTLY;
    }
    if let Err(outcome) = may_answer::<F>(&skb, headers) {
        return outcome;
    }
    let result = if headers.ip.protocol == Protocol::TCP {
        reset::<F>(&skb, headers)
    } else {
        let (kind, code) = match opened {
            Opened::FlowTableFull
            | Opened::OverShare
            | Opened::PortsExhausted
            | Opened::TooManyFrontends => F::PROHIBITED,
            _ => F::PORT_UNREACHABLE,
        };
        error::<F>(&skb, scratch, Icmp::new(opaque(kind), opaque(code), 0))
    };
    match result {
        Ok(()) => send(skb, to),
        Err(fault @ Fault) => fault.into(),
    }
}

/// Tells a packet's sender that it is too big for the way that it was sent by
/// instead of the one it was cut for.
#[inline(never)]
pub fn too_big<F: Refusal>(skb: &Skb, scratch: &mut Scratch<F::Addr>, mtu: u32, to: To) -> Outcome {
    let headers = &scratch.headers;
    // A later fragment has no ports that would lead to a socket; the first one
    // was answered.
    if headers.ip.part == Part::Later {
        return Outcome::DROP_SILENTLY;
    }
    if let Err(outcome) = may_answer::<F>(skb, headers) {
        return outcome;
    }
    let (kind, code) = F::TOO_BIG;
    match error::<F>(skb, scratch, Icmp::new(kind, code, mtu)) {
        Ok(()) => send(*skb, to),
        Err(fault @ Fault) => fault.into(),
    }
}

/// Checks that this packet may have an answer, and now. If not, what becomes of it.
#[inline(always)]
pub fn may_answer<F: Refusal>(skb: &Skb, headers: &Headers<F::Addr>) -> Result<(), Outcome> {
    if !is_from_single_host::<F>(*skb, headers) {
        return Err(Outcome::drop(Counter::RefusalUnanswerable));
    }
    if !within_limit::<F>(headers) {
        return Err(Outcome::drop(Counter::RefusalLimited));
    }
    Ok(())
}

/// Returns whether an answer would reach one host, and not the packet's own destination
/// (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
#[inline(always)]
fn is_from_single_host<F: Refusal>(skb: Skb, headers: &Headers<F::Addr>) -> bool {
    let ip = &headers.ip;
    let station = skb.link == Link::None || skb.read::<u8>(6).is_some_and(|byte| byte & 1 == 0);
    station && F::is_single_host(&ip.src) && ip.src != ip.dst
}

/// Returns whether this CPU may send one more answer, to this client: one that floods
/// leaves answers for others.
#[inline(always)]
fn within_limit<F: Refusal>(headers: &Headers<F::Addr>) -> bool {
    // SAFETY: the helper reads a clock.
    let millisecond = unsafe { bpf_ktime_get_coarse_ns() } >> 20;
    let share = F::hash_of_client(headers) as u32;
    let (Some(all), Some(own)) = (refusals::refusals(), refusals::refusals_to(share)) else {
        return false;
    };
    // SAFETY: values of this CPU's own.
    unsafe {
        if (*own).millisecond != millisecond {
            let recent = (*own).millisecond + RECENT >= millisecond;
            let flooded = recent && (*own).wanted > (*own).limit;
            (*own).limit = if flooded { SHARE } else { BURST };
            (*own).millisecond = millisecond;
            (*own).wanted = 0;
        }
        (*own).wanted += 1;
        if (*own).wanted > (*own).limit {
            return false;
        }
        if (*all).millisecond != millisecond {
            (*all).millisecond = millisecond;
            (*all).sent = 0;
        }
        (*all).sent += 1;
        (*all).sent <= LIMIT
    }
}

/// Sends a packet that was made an answer to where the one before it came from.
#[inline(always)]
pub fn send(skb: Skb, to: To) -> Outcome {
    if skb.link == Link::Ethernet {
        // At ingress the sender's MAC is the frame's source; at egress the
        // source is this device's own. Either way the answer goes there.
        let (Some(dst), Some(src)) = (skb.read::<[u8; 6]>(0), skb.read::<[u8; 6]>(6)) else {
            return Fault.into();
        };
        if skb.write(0, src).is_err() || skb.write(6, dst).is_err() {
            return Fault.into();
        }
    }
    let (hint, flags) = match to {
        To::Sender => (Hint::Done, 0),
        To::Host => (Hint::Done, BPF_F_INGRESS),
        To::Client => (Hint::None, BPF_F_INGRESS),
    };
    hint::set(skb, hint);
    // SAFETY: the helper checks the device.
    Outcome::redirect(unsafe { bpf_redirect(skb.ifindex(), u64::from(flags)) })
}

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
fn reset<F: Refusal>(skb: &Skb, headers: &Headers<F::Addr>) -> Result<(), Fault> {
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
    resize(skb, l4 + length)?;
    F::write_header(skb, headers, Protocol::TCP, length)?;
    skb.write(l4, new)
}

/// Turns the packet into an ICMP error that quotes it.
#[inline(never)]
fn error<F: Refusal>(
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
    resize(skb, headers.l3 + F::HEADER + length)?;
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

#[repr(C)]
#[derive(Clone, Copy)]
struct Icmp {
    kind: u8,
    code: u8,
    checksum: u16,
    /// The largest packet that would pass, in "too big" messages; network order.
    mtu: u32,
}

impl Icmp {
    #[inline(always)]
    fn new(kind: u8, code: u8, mtu: u32) -> Self {
        Self {
            kind,
            code,
            checksum: 0,
            mtu: mtu.to_be(),
        }
    }
}

/// Makes the packet `length` bytes long, in one piece.
#[inline(always)]
fn resize(skb: Skb, length: u32) -> Result<(), Fault> {
    // SAFETY: the helper checks its arguments.
    if unsafe { bpf_skb_change_tail(skb.raw(), length, 0) } != 0 {
        return Err(Fault);
    }
    skb.pull(length);
    Ok(())
}

/// Partial sum of a value's bytes, a multiple of four of them.
#[inline(always)]
fn sum<T>(value: &T, seed: u32) -> Result<u32, Fault> {
    sum_of(value, size_of::<T>() as u32, seed)
}

/// Partial sum of a value's first bytes, a multiple of four of them.
#[inline(always)]
fn sum_of<T>(value: &T, length: u32, seed: u32) -> Result<u32, Fault> {
    let bytes = core::ptr::from_ref(value).cast_mut().cast();
    // SAFETY: the helper reads `length` bytes of `value`, a type without padding; the
    // verifier checks that it has as many.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, length, seed) };
    u32::try_from(sum).map_err(|_| Fault)
}

/// Partial sum of the pseudo header.
#[inline(always)]
fn pseudo_header<A: Address>(src: &A, dst: &A, protocol: Protocol, length: u32) -> u32 {
    let mut sum = checksum::add(length.to_be(), u32::from(protocol.0).to_be());
    let mut index = 0;
    while index < A::WORDS {
        sum = checksum::add(sum, checksum::add(src.word(index), dst.word(index)));
        index += 1;
    }
    sum
}

/// The differences between the families' refusals.
pub trait Refusal: Lookup {
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

impl Refusal for V4 {
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

impl Refusal for V6 {
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
