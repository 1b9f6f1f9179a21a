//! Packets that come in by a device.

use proxy_common::{
    counter::Counter,
    family::{V4, V6},
    flow::{Flow, state},
    net::Protocol,
};

use crate::{
    counters::count,
    flow::{
        foreign,
        fragment::{self, Hook},
        open::{self, Origin},
        outgoing, ports, record, reply_tuple, table,
    },
    hooks::{Datapath, fast, forward, masquerade},
    lookup::{
        arrival::Arrival,
        client,
        frontend::{self, Destination},
        service_range,
    },
    maps::{
        prefilter,
        scratch::{self, Scratch},
        tail_call,
    },
    packet::{
        barrier::opaque,
        headers::{Headers, Part},
        hint::{self, Hint},
        icmp,
        ip::IpHeader,
        parse,
        skb::Skb,
        verdict::{Opened, Outcome},
    },
    reply::{
        echo, icmp_error,
        refuse::{self, To},
    },
};

/// Runs the ingress hook.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    // A packet may pass several devices on its way in (a VLAN above a network
    // card). Once translated it is done (E22).
    if matches!(hint::get(skb), Hint::Done | Hint::Opened | Hint::Masquerade) {
        return Outcome::NEXT.action();
    }
    let Some(network) = parse::network(skb, parse::PLAIN) else {
        return Outcome::NEXT.action();
    };
    if network.ethertype == V4::ETHERTYPE {
        fast_or_slow::<V4>(skb, network.tagged)
    } else if network.ethertype == V6::ETHERTYPE {
        fast_or_slow::<V6>(skb, network.tagged)
    } else {
        Outcome::NEXT.action()
    }
}

#[inline(always)]
fn fast_or_slow<F: Datapath>(skb: Skb, tagged: bool) -> i32 {
    if !tagged && let Some(outcome) = fast::ingress::<F>(skb) {
        return outcome.action();
    }
    hint::keep(skb, Hint::None);
    tail_call::go_slow(skb, F::SLOW.ingress).action()
}

/// The slow path: decides about every packet.
#[inline(always)]
pub fn slow<F: Datapath>(skb: Skb) -> i32 {
    let (_, link) = hint::resume(skb);
    let skb = skb.on(link);
    let outcome = handle::<F>(skb);
    if outcome == Outcome::AGAIN {
        hint::keep(skb, Hint::None);
        return tail_call::go_slow(skb, F::SLOW.ingress).action();
    }
    outcome.action()
}

#[inline(always)]
fn handle<F: Datapath>(skb: Skb) -> Outcome {
    let Some(scratch) = scratch::to_scratch::<F>(skb) else {
        return Outcome::NEXT;
    };
    let headers = &mut scratch.headers;
    // What the host will throw away opens, ends and asks nothing.
    if !opaque(parse::is_intact::<F>(&skb, headers)) {
        return Outcome::NEXT;
    }
    if headers.ip.unreadable {
        return unreadable::<F>(&skb, scratch);
    }
    if headers.ip.protocol == F::ICMP {
        if icmp::is_error::<F>(skb, headers) {
            return icmp_error::ingress::<F>(&skb, scratch);
        }
        if icmp::is_of_link::<F>(skb, headers) {
            hint::set(skb, Hint::Entered);
            return Outcome::NEXT;
        }
    }
    if headers.ip.part == Part::Later && !fragment::complete::<F>(headers, Hook::Ingress) {
        return unknown_fragment::<F>(&skb, scratch);
    }
    // Replies first: the filter may take this node's address for a frontend's.
    if prefilter::slow::may_be_masquerade::<F>(&headers.ip.dst)
        && Arrival::of(skb) != Arrival::Foreign
        && let Some(outcome) = masquerade::reply::<F>(&skb, scratch)
    {
        return outcome;
    }
    if opaque(may_be_for_frontend::<F>(&scratch.headers)) {
        let arrival = Arrival::of(skb);
        if arrival == Arrival::Foreign {
            hint::set(skb, Hint::Foreign);
            return Outcome::NEXT;
        }
        return to_frontend::<F>(&skb, scratch, opaque(arrival));
    }
    enter::<F>(&skb, scratch);
    Outcome::NEXT
}

/// A packet that is not addressed to a frontend.
#[inline(never)]
fn enter<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) {
    let headers = &scratch.headers;
    let is_pretended = opaque(outgoing::is_pretended_slowly::<F>(headers));
    let mut hint = outgoing::entered(is_pretended);
    if (headers.opens_connection() || headers.ip.protocol == Protocol::UDP)
        && opaque(direct::<F>(skb, scratch))
        && !is_pretended
    {
        hint = Hint::Direct;
    }
    hint::set(*skb, hint);
}

/// Returns whether the packet may be addressed to a frontend, or to what would be one.
#[inline(never)]
fn may_be_for_frontend<F: Datapath>(headers: &Headers<F::Addr>) -> bool {
    prefilter::may_be_frontend::<F>(&headers.ip.dst)
        || frontend::node_port::<F>(&headers.ip.dst, headers.dst_port, headers.ip.protocol)
            .is_some()
        || service_range::is_entered::<F>(headers)
}

/// Client to frontend: dst := backend.
#[inline(never)]
fn to_frontend<F: Datapath>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    arrival: Arrival,
) -> Outcome {
    if scratch.headers.ip.protocol == F::ICMP
        && let Some(outcome) = echo::answer::<F>(skb, scratch, To::Sender)
    {
        return outcome;
    }
    let record =
        match open::existing::<F>(&scratch.headers, &mut scratch.key, &mut scratch.frontend) {
            Some(record) => record,
            None if foreign::is_left::<F>(scratch) => {
                fragment::remember::<F>(&scratch.headers, Hook::Ingress);
                enter::<F>(skb, scratch);
                return Outcome::NEXT;
            }
            None if scratch.headers.ip.part == Part::Later => {
                return Outcome::drop(Counter::FragmentUnknown);
            }
            None => {
                let opened = open::open::<F>(skb, scratch, Origin::Device);
                open::log_opened::<F>(*skb, &scratch.headers, opened);
                match opened {
                    Opened::Flow => {}
                    Opened::NotOurs => {
                        enter::<F>(skb, scratch);
                        return Outcome::NEXT;
                    }
                    refused => {
                        return refuse::answer::<F>(skb, scratch, refused, To::Sender);
                    }
                }
                let ip = &scratch.headers.ip;
                match table::opened::<F>(&scratch.key, &ip.dst, scratch.headers.dst_port) {
                    Some(record) => record,
                    None => return Outcome::AGAIN,
                }
            }
        };
    fragment::remember::<F>(&scratch.headers, Hook::Ingress);
    if let Err(outcome) = masquerade::change_port::<F>(skb, scratch, record, To::Sender) {
        return outcome;
    }
    forward::forward_slowly::<F>(skb, scratch, record, arrival)
}

/// A packet that cannot be translated. It must not pass where others like it
/// would be: whoever takes it would take it for one of the address itself.
#[inline(never)]
fn unreadable<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    if Arrival::of(*skb) != Arrival::Foreign
        && !foreign::leaves_new()
        && (frontend::may_be_meant::<F>(&scratch.headers, &mut scratch.frontend)
            || reply_tuple::is_reply::<F>(&scratch.headers, &mut scratch.reply, &mut scratch.key))
    {
        return Outcome::drop(Counter::Unreadable);
    }
    hint::set(*skb, Hint::Entered);
    Outcome::NEXT
}

/// A later fragment whose first one was not seen. Half a datagram must never
/// pass, but only what is addressed to a Service is ours to drop.
#[inline(never)]
fn unknown_fragment<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    if opaque(may_be_for_frontend::<F>(&scratch.headers))
        && Arrival::of(*skb) != Arrival::Foreign
        && !foreign::leaves_new()
        && F::look_up(&scratch.headers, &mut scratch.frontend) != Destination::NotOurs
    {
        return Outcome::drop(Counter::FragmentUnknown);
    }
    // Egress may know the ports.
    let is_pretended = client::local_addr::<F>(&scratch.headers.ip.src).is_some();
    hint::set(*skb, outgoing::entered(is_pretended));
    Outcome::NEXT
}

/// A client talks straight to a backend from a port that it used to reach it
/// through a Service before: the backend's replies must not be taken for the
/// Service's (E13). Not if the packet is itself a reply of a flow, because the
/// two talk to each other through Services.
///
/// The backend of a masqueraded flow knows that by another address, and both may
/// go on: the flow gets another port between the hooks. Else of UDP the last use
/// counts, and a TCP connection must be over; whether one that looks open is, the
/// backend tells by its answer, see [`record::is_foreign_reply`].
///
/// Returns whether the datagram ends its sender's flow where it leaves. Until then
/// routing may drop it: it may pretend to come from the client. Only to a process of
/// this host it does not leave.
#[inline(never)]
fn direct<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> bool {
    let headers = &scratch.headers;
    let is_datagram = headers.ip.protocol == Protocol::UDP;
    scratch.key = table::reply_key::<F>(headers);
    if is_datagram
        && table::to_backend::<F>(&mut scratch.key, &headers.ip.src, headers.src_port).is_some()
    {
        return false;
    }
    let is_local = client::local_addr::<F>(&headers.ip.dst).is_some();
    scratch.key = table::client_key::<F>(headers);
    let Some(record) = table::to_backend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port)
    else {
        return false;
    };
    let flow = record.flow();
    if flow.flags & (Flow::<F::Addr>::OUTGOING | Flow::<F::Addr>::HOST) != 0 {
        return false;
    }
    if flow.flags & Flow::<F::Addr>::MASQUERADE != 0
        && ports::set_apart::<F>(
            skb,
            &scratch.headers,
            &scratch.key,
            &mut scratch.reply,
            record,
        )
    {
        return false;
    }
    if is_datagram && !is_local {
        return true;
    }
    if is_datagram || record::is_closing(flow) {
        F::remove(&scratch.key);
        count(Counter::TupleClash);
    } else {
        record.add_client_state(state::DIRECT);
    }
    false
}
