//! Connections that this node opens itself from a port that is also a NodePort.
//!
//! Netfilter's MASQUERADE takes any port from 1024 up for what pods send
//! outside, and processes may bind one. What the other end answers is addressed
//! like a client's packet to the NodePort. So the connection is noted where it
//! leaves, as a flow that changes nothing; its reply tuple in `MASQ` tells the
//! answers from clients, and keeps our own masquerading from that port.

use proxy_common::{
    counter::Counter,
    flow::{Flow, state},
    net::BePort,
};

use crate::{
    choose,
    flow::{self, Direction, Record},
    hint::{self, Hint},
    masquerade,
    opaque::opaque,
    open::{self, Opened, Place},
    outcome::Outcome,
    packet::Skb,
    parse::{Headers, IpHeader, tcp},
    tables::{self, Scratch},
};

/// No row of a table.
const NO_ROW: u32 = u32::MAX;

/// Whether a packet that leaves may open such a connection, or go on with one
/// of a protocol without connections.
#[inline(always)]
pub fn may_open<F: IpHeader>(headers: &Headers<F::Addr>) -> bool {
    (headers.opens_connection() || !headers.ip.protocol.has_connections())
        && tables::may_be_node_port::<F>(headers.src_port, headers.ip.protocol)
}

/// Whether netfilter may have given the first packet of a flow a source that
/// [`note`] should see.
#[inline(always)]
pub fn may_be_masqueraded<F: IpHeader>(headers: &Headers<F::Addr>) -> bool {
    may_open::<F>(headers)
        || headers.opens_connection() && tables::may_be_masquerade::<F>(&headers.ip.src)
}

/// Notes the connection of the packet in scratch memory, which leaves, if it is
/// one. A note that finds no room is left out.
#[inline(never)]
pub fn note<F: IpHeader>(scratch: &mut Scratch<F::Addr>) {
    if is_known::<F>(scratch) {
        return;
    }
    let headers = &scratch.headers;
    let (addr, port) = (headers.ip.src, headers.src_port);
    if !may_open::<F>(headers) || choose::node_port::<F>(&addr, port, headers.ip.protocol).is_none()
    {
        return;
    }
    // What this NodePort's clients get, on a device below the one where it was
    // translated.
    scratch.key = flow::reply_key::<F>(headers);
    if flow::to_frontend::<F>(&mut scratch.key, &addr, port).is_none() {
        open::<F>(scratch);
    }
}

/// Whether the answers to the packet in scratch memory are a flow's. A
/// masqueraded connection that is over gives way to one that netfilter opens
/// from its port.
#[inline(never)]
fn is_known<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> bool {
    if !tables::slow::may_be_masquerade::<F>(&scratch.headers.ip.src) {
        return false;
    }
    scratch.reply = masquerade::request_tuple::<F>(&scratch.headers);
    let Some(record) = masquerade::client::<F>(scratch) else {
        return false;
    };
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    if flow.flags & Flow::<F::Addr>::OUTGOING != 0 {
        go_on::<F>(&scratch.headers, record);
    } else if scratch.headers.opens_connection() && flow::is_closing(flow) {
        flow::remove::<F>(&scratch.key);
        tables::count(Counter::TupleClash);
        return false;
    }
    true
}

/// Another packet of a noted connection, or the first of one between the same
/// ports.
#[inline(always)]
fn go_on<F: IpHeader>(headers: &Headers<F::Addr>, record: Record<F>) {
    if headers.opens_connection() {
        let flow = record.as_ptr();
        // SAFETY: see `Record`; one-byte stores.
        unsafe {
            (*flow).client_state = state::BEYOND_SYN;
            (*flow).backend_state = 0;
        }
    }
    flow::touch::<F>(record, headers, Direction::ToBackend);
}

#[inline(never)]
fn open<F: IpHeader>(scratch: &mut Scratch<F::Addr>) {
    let place = opaque(open::place::<F>(scratch));
    if place == Place::None {
        return;
    }
    let headers = &scratch.headers;
    scratch.reply = masquerade::request_tuple::<F>(headers);
    scratch.flow = Flow {
        frontend_addr: headers.ip.dst,
        backend_addr: headers.ip.dst,
        masquerade_addr: headers.ip.src,
        frontend_port: headers.dst_port,
        backend_port: headers.dst_port,
        masquerade_port: headers.src_port,
        // Of a connection egress sees no other packet than the first.
        client_state: state::SEEN | state::BEYOND_SYN,
        backend_state: 0,
        service: NO_ROW,
        backend: NO_ROW,
        generation: 0,
        last_seen: flow::now(),
        uplink: 0,
        flags: Flow::<F::Addr>::MASQUERADE | Flow::<F::Addr>::OUTGOING,
        highest: 0,
        changed_port: BePort::ZERO,
    };
    if open::insert::<F>(scratch, place) != Opened::Flow {
        return;
    }
    tables::note_masquerade::<F>(&scratch.reply.masquerade_addr);
    // An entry that is there belongs to no flow any more.
    let _ = F::masquerades().insert(scratch.reply, scratch.key, tables::BPF_ANY);
}

/// A packet of the other end, which came in: passes. `None` if it asks for a
/// connection, like any client: then it has none with this node any more.
#[inline(never)]
pub fn reply<F: IpHeader>(
    skb: Skb,
    scratch: &Scratch<F::Addr>,
    record: Record<F>,
) -> Option<Outcome> {
    let headers = &scratch.headers;
    if headers.opens_connection() {
        flow::remove::<F>(&scratch.key);
        return None;
    }
    flow::touch::<F>(record, headers, Direction::ToClient);
    if headers.tcp_flags & tcp::FIN != 0 {
        // This node's own is not seen.
        // SAFETY: see `Record`; a one-byte store.
        unsafe { (*record.as_ptr()).client_state |= state::FIN };
    }
    hint::set(skb, Hint::Entered);
    Some(Outcome::NEXT)
}
