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
    flow::{Flows, outgoing, place, record::Direction, table},
    maps::{prefilter, scratch::Scratch, tables::Tables},
    packet::headers::Headers,
};

/// Returns whether a packet from a backend may be a question to another one.
#[inline(always)]
pub fn may_ask<F: Tables>(headers: &Headers<F::Addr>) -> bool {
    headers.ip.protocol == Protocol::UDP
        && prefilter::may_be_backend::<F>(&headers.ip.dst, headers.dst_port, Protocol::UDP)
}

/// Notes the question in scratch memory, which is no packet of an open flow. A note
/// that finds no room is left out.
#[inline(never)]
pub fn note<F: Flows>(scratch: &mut Scratch<F::Addr>) {
    let headers = &scratch.headers;
    scratch.key = table::client_key::<F>(headers);
    match table::to_backend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port) {
        None => {
            outgoing::open::<F>(scratch, BePort::ZERO, Flow::<F::Addr>::OUTGOING);
        }
        Some(record) if place::is_note(record.flow()) => {
            record.touch(headers, Direction::ToBackend);
        }
        Some(_) => {}
    }
}
