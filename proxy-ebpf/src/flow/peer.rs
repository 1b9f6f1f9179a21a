//! UDP peers that talk to each other through Services, each from one port.
//!
//! The question of a peer on another node, or of one that is served in its calls,
//! comes in as a datagram from one backend to another, and what its receiver
//! answers would look like a datagram straight to a backend. So the question is
//! noted where it leaves for the receiver, as a flow that changes nothing. It tells
//! answers from such datagrams, and gives a question that the receiver asks by way
//! of a Service another port, as netfilter does: with its own it would be one of
//! the answers.

use proxy_common::{
    flow::Flow,
    net::{BePort, Protocol},
};

use crate::{
    flow::{
        outgoing,
        record::{self, Direction},
    },
    maps::tables::{self, Scratch, Tables},
    packet::parse::{Headers, IpHeader},
};

/// Whether a packet from a backend may be a question to another one.
#[inline(always)]
pub fn may_ask<F: IpHeader>(headers: &Headers<F::Addr>) -> bool {
    headers.ip.protocol == Protocol::UDP
        && tables::may_be_backend::<F>(&headers.ip.dst, headers.dst_port, Protocol::UDP)
}

/// Notes the question in scratch memory, which is no packet of an open flow. A note
/// that finds no room is left out.
#[inline(never)]
pub fn note<F: IpHeader>(scratch: &mut Scratch<F::Addr>) {
    let headers = &scratch.headers;
    scratch.key = record::client_key::<F>(headers);
    match record::to_backend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port) {
        None => {
            outgoing::open::<F>(scratch, BePort::ZERO, Flow::<F::Addr>::OUTGOING);
        }
        // SAFETY: see `Record`.
        Some(record) if is_note(unsafe { record.as_ref() }) => {
            record::touch::<F>(record, headers, Direction::ToBackend);
        }
        Some(_) => {}
    }
}

/// Whether packets from the scratch flow's client to its backend would be answers
/// to a question of that backend's.
#[inline(always)]
pub fn would_answer<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    let client = scratch.key;
    if client.protocol != Protocol::UDP {
        return false;
    }
    let flow = &scratch.flow;
    let mut key = client;
    key.addr = flow.backend_addr;
    key.port = flow.backend_port;
    record::to_backend::<F>(&mut key, &client.addr, client.port)
        // SAFETY: see `Record`.
        .is_some_and(|record| is_note(unsafe { record.as_ref() }))
}

#[inline(always)]
fn is_note<A>(flow: &Flow<A>) -> bool {
    flow.flags & (Flow::<A>::OUTGOING | Flow::<A>::MASQUERADE) == Flow::<A>::OUTGOING
}
