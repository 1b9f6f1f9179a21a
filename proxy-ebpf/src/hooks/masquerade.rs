//! Masquerading: backends that must see an address of this node.

use proxy_common::{
    counter::Counter,
    flow::Flow,
    net::{Address as _, BePort},
};

use crate::{
    flow::{
        deliver,
        fragment::{self, Hook},
        outgoing, ports,
        record::{Direction, Record},
        reply_tuple, table,
    },
    hooks::Datapath,
    lookup::source,
    maps::scratch::Scratch,
    packet::{
        headers::Side,
        hint::{self, Hint},
        skb::Skb,
        verdict::{Fault, Opened, Outcome},
    },
    reply::refuse::{self, To},
};

/// Client to backend at the backend's device: src := an address of this node.
/// `None`: the packet belongs to no masqueraded flow.
#[inline(never)]
pub fn forward<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    let headers = &scratch.headers;
    scratch.key = table::client_key::<F>(headers);
    let record = match table::to_backend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port) {
        Some(record) => record,
        None => reply_tuple::with_changed_port::<F>(
            &scratch.headers,
            &mut scratch.reply,
            &mut scratch.key,
        )?,
    };
    let flow = record.flow();
    let outgoing = flow.flags & Flow::<F::Addr>::OUTGOING != 0;
    if flow.flags & Flow::<F::Addr>::MASQUERADE == 0
        || outgoing && !outgoing::leaves::<F>(&scratch.headers, record)
    {
        return None;
    }
    if !outgoing {
        record.leave(&scratch.headers);
    }
    let addr = &mut scratch.reply.masquerade_addr;
    *addr = flow.masquerade_addr;
    if !outgoing && flow.masquerade_port == BePort::ZERO {
        source::masquerade_source::<F>(skb, &scratch.headers.ip, addr);
        if addr.is_zero() {
            return Some(Outcome::drop(Counter::MasqueradeNoAddress));
        }
    }
    let Some(port) = ports::allocate::<F>(
        skb,
        &scratch.headers,
        &scratch.key,
        &mut scratch.reply,
        record,
    ) else {
        // Of a process of the host the answer would have to look like the
        // frontend's; it was refused before, where it got its changed port.
        return Some(if flow.flags & Flow::<F::Addr>::HOST == 0 && !outgoing {
            refuse::answer::<F>(skb, scratch, Opened::PortsExhausted, To::Client)
        } else {
            Outcome::drop(Counter::MasqueradePortsExhausted)
        });
    };
    fragment::remember::<F>(&scratch.headers, Hook::Egress);
    Some(
        match F::rewrite(
            *skb,
            &mut scratch.headers,
            Side::Source,
            &scratch.reply.masquerade_addr,
            port,
        ) {
            Ok(()) => Outcome::NEXT,
            Err(fault) => fault.into(),
        },
    )
}

/// Gives a packet of a client the port that its flow has between the hooks: the
/// client's own, unless another flow needs that one, or a connection that a
/// process of this host makes itself.
#[inline(never)]
pub fn change_port<F: Datapath>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
    to: To,
) -> Result<(), Outcome> {
    let flow = record.flow();
    if flow.flags & Flow::<F::Addr>::CHANGE_PORT == 0 {
        return Ok(());
    }
    let client = scratch.key.addr;
    let Some(port) = ports::changed_port::<F>(
        skb,
        &scratch.headers,
        &scratch.key,
        &mut scratch.reply,
        record,
    ) else {
        let refused = refuse::answer::<F>(skb, scratch, Opened::PortsExhausted, to);
        return Err(refused);
    };
    F::rewrite(*skb, &mut scratch.headers, Side::Source, &client, port).map_err(Outcome::from)
}

/// Backend to masquerade address at the backend's device: dst := client, and
/// for a process of this host src := frontend. `None`: not a reply of a flow.
#[inline(never)]
pub fn reply<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    let skb = *skb;
    let record =
        reply_tuple::client_of::<F>(&scratch.headers, &mut scratch.reply, &mut scratch.key)?;
    let flow = record.flow();
    if flow.flags & Flow::<F::Addr>::OUTGOING != 0 {
        return outgoing::reply::<F>(skb, &mut scratch.headers, &scratch.key, record);
    }
    hint::set(skb, Hint::Entered);
    if !reply_tuple::is_masquerade::<F>(flow, &scratch.reply) {
        // A changed port is undone where the packet leaves: with the client's
        // own it would look like a reply of the client's other flow.
        return Some(Outcome::NEXT);
    }
    fragment::remember::<F>(&scratch.headers, Hook::Ingress);
    if flow.flags & Flow::<F::Addr>::HOST != 0 {
        return Some(to_host::<F>(&skb, scratch, record));
    }
    // The other half follows where the packet leaves towards the client.
    let (addr, port) = (scratch.key.addr, flow.port_between(scratch.key.port));
    Some(
        match F::rewrite(skb, &mut scratch.headers, Side::Destination, &addr, port) {
            Ok(()) => Outcome::NEXT,
            Err(fault) => fault.into(),
        },
    )
}

/// Replies that have to be recognised where they leave: those to a client whose
/// port was changed, and those of this host to itself.
#[inline(never)]
pub fn reply_at_egress<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    let record =
        reply_tuple::client_of::<F>(&scratch.headers, &mut scratch.reply, &mut scratch.key)?;
    fragment::remember_reply::<F>(&scratch.headers);
    Some(to_host::<F>(skb, scratch, record))
}

/// Gives a reply both addresses that the client expects, and to a process of
/// this host the device that it expects.
#[inline(never)]
fn to_host<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>, record: Record<F>) -> Outcome {
    let flow = record.flow();
    let (frontend_addr, frontend_port) = (flow.frontend_addr, flow.frontend_port);
    let headers = &mut scratch.headers;
    record.touch(headers, Direction::ToClient);
    let (addr, port) = (scratch.key.addr, scratch.key.port);
    if F::rewrite(*skb, headers, Side::Destination, &addr, port).is_err()
        || F::rewrite(*skb, headers, Side::Source, &frontend_addr, frontend_port).is_err()
    {
        return Fault.into();
    }
    deliver::hand_back(*skb, flow)
}
