//! Answers in the place of a Service that cannot: a TCP reset, or an ICMP
//! error that quotes the packet as its sender knows it (S43–S46).

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::generated::bpf_redirect};
use proxy_common::{counter::Counter, net::Protocol};

use super::{
    family::ReplyFamily,
    icmp_message::{self, Icmp},
    limit, reset,
};
use crate::{
    counters::count,
    maps::scratch::Scratch,
    packet::{
        barrier::opaque,
        headers::{Headers, Part, tcp},
        hint::{self, Hint},
        skb::{Addressee, Link, Skb},
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

/// Ends the way of a packet that opened no flow, and tells its sender where it
/// is to be told. Never answers broadcasts, resets, ICMP errors, and what no
/// single host sent.
#[inline(never)]
pub fn answer<F: ReplyFamily>(
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
        reset::reset::<F>(&skb, headers)
    } else {
        let (kind, code) = match opened {
            Opened::FlowTableFull
            | Opened::OverShare
            | Opened::PortsExhausted
            | Opened::TooManyFrontends => F::PROHIBITED,
            _ => F::PORT_UNREACHABLE,
        };
        icmp_message::error::<F>(&skb, scratch, Icmp::new(opaque(kind), opaque(code), 0))
    };
    match result {
        Ok(()) => send(skb, to),
        Err(fault @ Fault) => fault.into(),
    }
}

/// Tells a packet's sender that it is too big for the way that it was sent by
/// instead of the one it was cut for.
#[inline(never)]
pub fn too_big<F: ReplyFamily>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    mtu: u32,
    to: To,
) -> Outcome {
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
    match icmp_message::error::<F>(skb, scratch, Icmp::new(kind, code, mtu)) {
        Ok(()) => send(*skb, to),
        Err(fault @ Fault) => fault.into(),
    }
}

/// Checks that this packet may have an answer, and now. If not, what becomes of it.
#[inline(always)]
pub fn may_answer<F: ReplyFamily>(skb: &Skb, headers: &Headers<F::Addr>) -> Result<(), Outcome> {
    if !is_from_single_host::<F>(*skb, headers) {
        return Err(Outcome::drop(Counter::RefusalUnanswerable));
    }
    if !limit::within_limit::<F>(headers) {
        return Err(Outcome::drop(Counter::RefusalLimited));
    }
    Ok(())
}

/// Returns whether an answer would reach one host, and not the packet's own destination
/// (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
#[inline(always)]
fn is_from_single_host<F: ReplyFamily>(skb: Skb, headers: &Headers<F::Addr>) -> bool {
    let ip = &headers.ip;
    let station = skb.link == Link::None || skb.read::<u8>(6).is_some_and(|byte| byte & 1 == 0);
    station && F::is_single_host(&ip.src) && ip.src != ip.dst
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
