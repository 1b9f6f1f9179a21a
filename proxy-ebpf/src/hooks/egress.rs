//! Packets that leave by a device.

use proxy_common::{
    counter::Counter,
    family::{V4, V6},
    net::Protocol,
};

use crate::{
    counters::count,
    flow::{
        foreign,
        fragment::{self, Hook},
        outgoing, peer,
        record::{self, Direction},
        reply_tuple, table, uplink,
    },
    hooks::{Datapath, fast, masquerade},
    lookup::{
        frontend::{self, Destination},
        service_range,
    },
    maps::{
        node, prefilter,
        scratch::{self, Scratch},
        tail_call,
    },
    packet::{
        barrier::opaque,
        headers::{Part, Side},
        hint::{self, Hint},
        icmp,
        ip::IpHeader,
        parse,
        skb::{Link, Skb, same_mac},
        verdict::Outcome,
    },
    reply::icmp_error,
};

/// Runs the egress hook.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let hint = hint::take(skb);
    if hint == Hint::Done {
        return Outcome::NEXT.action();
    }
    let Some(network) = parse::network(skb, parse::PLAIN) else {
        return Outcome::NEXT.action();
    };
    if network.ethertype == V4::ETHERTYPE {
        fast_or_slow::<V4>(skb, network.tagged, hint)
    } else if network.ethertype == V6::ETHERTYPE {
        fast_or_slow::<V6>(skb, network.tagged, hint)
    } else {
        Outcome::NEXT.action()
    }
}

#[inline(always)]
fn fast_or_slow<F: Datapath>(skb: Skb, tagged: bool, hint: Hint) -> i32 {
    if !tagged && let Some(outcome) = fast::egress::<F>(skb, hint) {
        return outcome.action();
    }
    hint::keep(skb, hint);
    tail_call::go_slow(skb, F::SLOW.egress).action()
}

/// The slow path: decides about every packet.
#[inline(always)]
pub fn slow<F: Datapath>(skb: Skb) -> i32 {
    let (hint, link) = hint::resume(skb);
    let skb = skb.on(link);
    let outcome = handle::<F>(skb, hint);
    if outcome == Outcome::AGAIN {
        hint::keep(skb, Hint::None);
        return tail_call::go_slow(skb, F::SLOW.egress).action();
    }
    if outcome == Outcome::BY_UPLINK {
        hint::keep(skb, Hint::None);
        return tail_call::go_slow(skb, F::SLOW.uplink).action();
    }
    outcome.action()
}

#[inline(always)]
fn handle<F: Datapath>(skb: Skb, hint: Hint) -> Outcome {
    let Some(scratch) = scratch::to_scratch::<F>(skb) else {
        return Outcome::NEXT;
    };
    if hint == Hint::Opened {
        table::leave_unchanged::<F>(&scratch.headers);
        return outgoing::note::<F>(&skb, scratch, hint);
    }
    let headers = &mut scratch.headers;
    if headers.ip.unreadable {
        return unreadable::<F>(&skb, scratch, hint);
    }
    if headers.ip.protocol == F::ICMP {
        if icmp::is_error::<F>(skb, headers) {
            return icmp_error::egress::<F>(&skb, scratch);
        }
        if icmp::is_of_link::<F>(skb, headers) {
            return Outcome::NEXT;
        }
    }
    if headers.ip.part != Part::Whole {
        let is_reply = fragment::is_reply::<F>(headers);
        if is_reply || hint == Hint::Masquerade {
            // Of datagrams that are none of ours, too, to tell them from ours; and
            // where netfilter may have masqueraded, so that no flow has the source.
            fragment::remember::<F>(headers, Hook::Egress);
        }
        // Where no replies are known this is not ours, or one that does no harm:
        // the hook before this one has dropped it if it is a request.
        if headers.ip.part == Part::Later
            && !fragment::complete::<F>(headers, Hook::Egress)
            && (is_reply || hint == Hint::Masquerade)
        {
            return Outcome::drop(Counter::FragmentUnknown);
        }
    }
    let protocol = headers.ip.protocol;
    let to_backend = opaque(prefilter::slow::may_be_backend::<F>(
        &headers.ip.dst,
        headers.dst_port,
        protocol,
    ));
    if (hint == Hint::Masquerade || foreign::may_be_masqueraded::<F>(headers, hint))
        && to_backend
        && let Some(outcome) = masquerade::forward::<F>(&skb, scratch)
    {
        return outcome;
    }
    if hint == Hint::Direct {
        is_used_directly::<F>(scratch);
    }
    let headers = &scratch.headers;
    if prefilter::slow::may_be_backend::<F>(&headers.ip.src, headers.src_port, protocol) {
        if let Some(outcome) = to_client::<F>(&skb, scratch) {
            return outcome;
        }
        if prefilter::slow::may_be_masquerade::<F>(&scratch.headers.ip.dst)
            && let Some(outcome) = masquerade::reply_at_egress::<F>(&skb, scratch)
        {
            return outcome;
        }
        if to_backend
            && protocol == Protocol::UDP
            && hint != Hint::Foreign
            && !skb.is_host_originated()
        {
            peer::note::<F>(scratch);
        }
    }
    if hint != Hint::None {
        if hint == Hint::Foreign {
            return Outcome::NEXT;
        }
        return outgoing::note::<F>(&skb, scratch, hint);
    }
    if to_backend {
        if let Some(outcome) = masquerade::forward::<F>(&skb, scratch) {
            return outcome;
        }
        table::leave_unchanged::<F>(&scratch.headers);
    }
    let headers = &scratch.headers;
    let frontend = opaque(prefilter::slow::may_be_frontend::<F>(&headers.ip.dst));
    if skb.is_host_originated() {
        if frontend || service_range::is_entered::<F>(headers) {
            hint::keep(skb, Hint::None);
            return tail_call::go_slow(skb, F::SLOW.host);
        }
    } else if frontend
        && !foreign::leaves_new()
        && is_routed(skb)
        && F::look_up(&scratch.headers, &mut scratch.frontend) == Destination::Service
    {
        // A forwarded packet to a frontend that no ingress program
        // translated: its device got its programs too late. Letting it go
        // would give the client's flow a way around us that it keeps (E23);
        // the client's retry succeeds.
        return Outcome::drop(Counter::Untranslated);
    }
    outgoing::note::<F>(&skb, scratch, Hint::None)
}

/// A packet that cannot be translated, as at ingress: neither a backend's reply
/// nor what is addressed to a Service leaves as it is.
#[inline(never)]
fn unreadable<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>, hint: Hint) -> Outcome {
    let headers = &scratch.headers;
    scratch.key = table::reply_key::<F>(headers);
    let (src, port) = (&headers.ip.src, headers.src_port);
    if table::to_backend::<F>(&mut scratch.key, src, port).is_some()
        || reply_tuple::is_reply::<F>(&scratch.headers, &mut scratch.reply, &mut scratch.key)
        || hint == Hint::None
            && (skb.is_host_originated() || is_routed(*skb))
            && frontend::may_be_meant::<F>(&scratch.headers, &mut scratch.frontend)
    {
        return Outcome::drop(Counter::Unreadable);
    }
    Outcome::NEXT
}

/// Returns whether this host sent the packet on itself, rather than bridged a frame of
/// somebody else (E12).
#[inline(never)]
fn is_routed(skb: Skb) -> bool {
    if skb.link == Link::None {
        return true;
    }
    let (Some(device), Some(mac)) = (node::device(skb.ifindex()), skb.read::<[u8; 6]>(6)) else {
        return false;
    };
    same_mac(mac, device.mac) || same_mac(mac, device.bridge_mac)
}

/// The client of a UDP flow to this backend sends a datagram there itself, and
/// routing believes that it does: what the backend sends is an answer to that from
/// now on (E13).
#[inline(never)]
fn is_used_directly<F: Datapath>(scratch: &mut Scratch<F::Addr>) {
    let headers = &scratch.headers;
    scratch.key = table::client_key::<F>(headers);
    if table::to_backend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port).is_some() {
        F::remove(&scratch.key);
        count(Counter::TupleClash);
    }
}

/// Backend to client: src := frontend. `None`: not a reply of a flow.
#[inline(never)]
fn to_client<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    let headers = &mut scratch.headers;
    scratch.key = table::reply_key::<F>(headers);
    let record = table::to_backend::<F>(&mut scratch.key, &headers.ip.src, headers.src_port)?;
    let flow = record.flow();
    if record::is_foreign_reply::<F>(flow, headers) {
        F::remove(&scratch.key);
        count(Counter::TupleClash);
        return None;
    }
    let (addr, port) = (flow.frontend_addr, flow.frontend_port);
    record.touch(headers, Direction::ToClient);
    fragment::remember_reply::<F>(headers);
    Some(match F::rewrite(*skb, headers, Side::Source, &addr, port) {
        Ok(()) => uplink::go_on(*skb, flow),
        Err(fault) => fault.into(),
    })
}
