//! Connections that this node opens itself from a port that is also a NodePort,
//! or that a masqueraded flow has towards the same backend.
//!
//! Netfilter's MASQUERADE takes any port from 1024 up for what pods send
//! outside, and processes may bind one. What the other end answers is addressed
//! like a client's packet to the NodePort. So the connection is noted where it
//! leaves, as a flow that changes nothing; its reply tuple in `MASQ` tells the
//! answers from clients, and keeps our own masquerading from that port.
//!
//! A process may also choose a port that a masqueraded flow has already, for they
//! share the node's ports. Its packets get another one: the same kind of flow, in
//! which only the port changes.

use proxy_common::{
    counter::Counter,
    flow::{Flow, FlowKey, state},
    masquerade::MasqueradeKey,
    net::{AddrV4, BePort},
};

use crate::{
    clock::now,
    counters::count,
    flow::{
        Flows, foreign,
        place::{self, Place},
        record::{self, Direction, Record},
        reply_tuple, table,
    },
    lookup::{client, frontend},
    maps::{prefilter, scratch::Scratch, tables},
    packet::{
        barrier::opaque,
        headers::{Headers, Side, tcp},
        hint::{self, Hint},
        skb::Skb,
        verdict::{Fault, Opened, Outcome},
    },
};

/// No row of a table.
const NO_ROW: u32 = u32::MAX;
/// Flags of a connection that this node opens itself.
const OWN: u8 = Flow::<AddrV4>::MASQUERADE | Flow::<AddrV4>::OUTGOING;

/// Returns whether a packet that leaves may open such a connection, or go on with one
/// of a protocol without connections.
#[inline(always)]
pub fn may_open<F: Flows>(headers: &Headers<F::Addr>) -> bool {
    (headers.opens_connection() || !headers.ip.protocol.has_connections())
        && prefilter::may_be_node_port::<F>(headers.src_port, headers.ip.protocol)
}

/// Returns whether a packet that comes in has a source that only this node should open
/// connections from. Others may use it all the same, and IPv6 routing does not
/// mind, so it is not noted where it leaves again.
#[inline(always)]
pub fn is_pretended<F: Flows>(headers: &Headers<F::Addr>) -> bool {
    may_open::<F>(headers) && client::local_addr::<F>(&headers.ip.src).is_some()
}

/// The same question of the slow path.
#[inline(never)]
pub fn is_pretended_slowly<F: Flows>(headers: &Headers<F::Addr>) -> bool {
    is_pretended::<F>(headers)
}

/// The hint for a packet that came in and is not addressed to a frontend.
#[inline(always)]
pub fn entered(is_pretended: bool) -> Hint {
    if is_pretended {
        Hint::Foreign
    } else {
        Hint::Entered
    }
}

/// Returns whether netfilter may have given the first packet of a flow a source that
/// [`note`] should see.
#[inline(always)]
pub fn may_be_masqueraded<F: Flows>(headers: &Headers<F::Addr>) -> bool {
    may_open::<F>(headers)
        || headers.opens_connection() && prefilter::may_be_masquerade::<F>(&headers.ip.src)
}

/// Lets the packet in scratch memory leave, and notes its connection if it is
/// one. A note that finds no room is left out.
#[inline(never)]
pub fn note<F: Flows>(skb: &Skb, scratch: &mut Scratch<F::Addr>, hint: Hint) -> Outcome {
    match opaque(holder::<F>(
        &scratch.headers,
        &mut scratch.reply,
        &mut scratch.key,
    )) {
        Holder::Itself => return Outcome::NEXT,
        Holder::Other => return part::<F>(skb, scratch, skb.is_host_originated(), false),
        Holder::Forwarded => {
            let others = skb.is_host_originated() || hint == Hint::Entered;
            return part::<F>(skb, scratch, others, foreign::is_at_work());
        }
        Holder::Nobody => {}
    }
    let headers = &scratch.headers;
    let (addr, port) = (headers.ip.src, headers.src_port);
    if !may_open::<F>(headers)
        || frontend::node_port::<F>(&addr, port, headers.ip.protocol).is_none()
    {
        return Outcome::NEXT;
    }
    // What this NodePort's clients get, on a device below the one where it was
    // translated.
    scratch.key = table::reply_key::<F>(headers);
    if table::to_frontend::<F>(&mut scratch.key, &addr, port).is_none()
        && opaque(open::<F>(scratch, port, OWN))
    {
        prefilter::note_masquerade::<F>(&scratch.reply.masquerade_addr);
        // An entry that is there belongs to no flow any more.
        let _ = F::masquerades().insert(scratch.reply, scratch.key, tables::BPF_ANY);
    }
    Outcome::NEXT
}

/// The flow that the answers to a packet belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Holder {
    /// No flow's.
    Nobody,
    /// Those of the connection that it belongs to.
    Itself,
    /// Those of a masqueraded flow to the same backend.
    Other,
    /// The same, of a client that is no process of this host.
    Forwarded,
}

/// Tells whose the answers to a packet are; sets their tuple, and the key to that of the
/// flow. A masqueraded connection that is over gives way to one that is opened from its
/// port.
#[inline(never)]
fn holder<F: Flows>(
    headers: &Headers<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    key: &mut FlowKey<F::Addr>,
) -> Holder {
    if !prefilter::slow::may_be_masquerade::<F>(&headers.ip.src) {
        return Holder::Nobody;
    }
    *reply = reply_tuple::request_tuple::<F>(headers);
    let Some(record) = reply_tuple::client::<F>(reply, key) else {
        return Holder::Nobody;
    };
    let flow = record.flow();
    let same = key.port == headers.src_port;
    if same && flow.flags & Flow::<F::Addr>::OUTGOING != 0 {
        go_on::<F>(headers, record);
        return Holder::Itself;
    }
    if headers.opens_connection() && record::is_closing(flow) {
        F::remove(key);
        count(Counter::TupleClash);
        return Holder::Nobody;
    }
    if flow.flags & Flow::<F::Addr>::HOST == 0 {
        Holder::Forwarded
    } else {
        Holder::Other
    }
}

/// A connection that a process of this host opens itself, from a port that a
/// masqueraded flow has towards the same backend: its packets get another one,
/// as netfilter would see to. The packet is not the masqueraded flow's own, on a
/// device below the one where that was translated, if a socket waits for the
/// answers.
///
/// Where kube-proxy has rules, it masquerades the host's processes and others, whose
/// sockets have other ports. Those are told from packets of a forwarded flow by where they
/// come from. `others`: nothing has translated it before. `surely`: that is enough.
#[inline(never)]
fn part<F: Flows>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    others: bool,
    surely: bool,
) -> Outcome {
    let headers = &scratch.headers;
    if !headers.opens_connection() && headers.ip.protocol.has_connections()
        || !others
        || !(surely || skb.is_host_originated() && F::has_socket(*skb, &scratch.reply))
        || !opaque(open::<F>(scratch, BePort::ZERO, OWN))
    {
        return Outcome::NEXT;
    }
    // Now it is one of a flow that has another port.
    Outcome::AGAIN
}

/// Notes a packet of a noted connection that leaves. Whether it needs the port
/// that the connection got.
#[inline(always)]
pub fn leaves<F: Flows>(headers: &Headers<F::Addr>, record: Record<F>) -> bool {
    let port = record.flow().masquerade_port;
    if port != headers.src_port {
        go_on::<F>(headers, record);
    }
    port != headers.src_port
}

/// Another packet of a noted connection, or the first of one between the same
/// ports.
#[inline(always)]
fn go_on<F: Flows>(headers: &Headers<F::Addr>, record: Record<F>) {
    if headers.opens_connection() {
        record.reopen();
    }
    record.touch(headers, Direction::ToBackend);
}

/// Opens the flow of the connection of the packet in scratch memory, whose
/// answers come to `port`; to one that is still to be found if that is zero.
#[inline(never)]
pub fn open<F: Flows>(scratch: &mut Scratch<F::Addr>, port: BePort, flags: u8) -> bool {
    let place = F::place(&scratch.headers, &mut scratch.key);
    if place == Place::None {
        return false;
    }
    let headers = &scratch.headers;
    scratch.reply = reply_tuple::request_tuple::<F>(headers);
    scratch.flow = Flow {
        frontend_addr: headers.ip.dst,
        backend_addr: headers.ip.dst,
        masquerade_addr: headers.ip.src,
        frontend_port: headers.dst_port,
        backend_port: headers.dst_port,
        masquerade_port: port,
        // Of a connection that keeps its port egress sees no other packet than
        // the first.
        client_state: state::SEEN | state::BEYOND_SYN,
        backend_state: 0,
        service: NO_ROW,
        backend: NO_ROW,
        generation: 0,
        last_seen: now(),
        uplink: 0,
        flags,
        highest: 0,
        changed_port: BePort::ZERO,
    };
    opaque(place::insert::<F>(&scratch.key, &mut scratch.flow, place)) == Opened::Flow
}

/// A packet of the other end, which came in: passes. `None` if it asks for a
/// connection, like any client: then it has none with this node any more.
#[inline(never)]
pub fn reply<F: Flows>(
    skb: Skb,
    headers: &mut Headers<F::Addr>,
    key: &FlowKey<F::Addr>,
    record: Record<F>,
) -> Option<Outcome> {
    if headers.opens_connection() {
        F::remove(key);
        return None;
    }
    record.touch(headers, Direction::ToClient);
    if headers.tcp_flags & tcp::FIN != 0 {
        // This node's own is not seen.
        record.add_client_state(state::FIN);
    }
    hint::set(skb, Hint::Entered);
    let port = key.port;
    if port != headers.dst_port
        && F::rewrite(skb, headers, Side::Destination, &key.addr, port).is_err()
    {
        return Some(Fault.into());
    }
    Some(Outcome::NEXT)
}
