//! The way of nearly all packets: those that are not ours, and those of flows
//! that are open.
//!
//! Everything here could be left out; the slow path decides the same. It is
//! written for speed: no calls, one look-up in the flow table, and anything
//! unusual is handed on (`None`).

use proxy_common::{flow::Flow, net::Protocol};

use crate::{
    flow::{
        foreign, outgoing, peer,
        record::{self, Direction},
        reply_tuple, table, uplink,
    },
    hooks::{Datapath, forward},
    lookup::{arrival::Arrival, service_range},
    maps::prefilter,
    packet::{
        headers::{Side, tcp},
        hint::{self, Hint},
        icmp, parse, rewrite,
        skb::Skb,
        verdict::Outcome,
    },
};

/// A packet that comes in. `None`: for the slow path.
#[inline(always)]
pub fn ingress<F: Datapath>(skb: Skb) -> Option<Outcome> {
    let mut headers = parse::plain::<F>(skb, skb.header_len())?;
    if headers.ip.protocol == F::ICMP && icmp::is_error::<F>(skb, &headers) {
        return None;
    }
    let protocol = headers.ip.protocol;
    if prefilter::may_be_frontend::<F>(&headers.ip.dst)
        || prefilter::may_be_node_port::<F>(headers.dst_port, protocol)
    {
        let record = table::get::<F>(&table::client_key::<F>(&headers))?;
        let flow = record.flow();
        if flow.frontend_port != headers.dst_port
            || flow.frontend_addr != headers.ip.dst
            || flow.flags & (Flow::<F::Addr>::CHANGE_PORT | Flow::<F::Addr>::OUTGOING) != 0
            || headers.tcp_flags & tcp::RST != 0
            || record::is_stale::<F>(flow, &headers)
            || record::is_due::<F>(flow, &headers)
        {
            return None;
        }
        let arrival = Arrival::of(skb);
        if arrival == Arrival::Foreign {
            return None;
        }
        return Some(forward::forward::<F>(skb, &mut headers, record, arrival));
    }
    if prefilter::may_be_masquerade::<F>(&headers.ip.dst)
        && prefilter::may_be_backend::<F>(&headers.ip.src, headers.src_port, protocol)
    {
        return None;
    }
    // Straight to a backend; see `ingress::direct`.
    if (headers.opens_connection() || protocol == Protocol::UDP)
        && prefilter::may_be_backend::<F>(&headers.ip.dst, headers.dst_port, protocol)
        && table::get::<F>(&table::client_key::<F>(&headers)).is_some()
    {
        return None;
    }
    if service_range::is_entered::<F>(&headers) {
        return None;
    }
    hint::set(
        skb,
        outgoing::entered(outgoing::is_pretended::<F>(&headers)),
    );
    Some(Outcome::NEXT)
}

/// A packet that leaves. `None`: for the slow path.
#[inline(always)]
pub fn egress<F: Datapath>(skb: Skb, hint: Hint) -> Option<Outcome> {
    let mut headers = parse::plain::<F>(skb, skb.header_len())?;
    if hint == Hint::Opened {
        table::leave_unchanged::<F>(&headers);
        let masqueraded = outgoing::may_be_masqueraded::<F>(&headers);
        return (!masqueraded).then_some(Outcome::NEXT);
    }
    if matches!(hint, Hint::Masquerade | Hint::Direct)
        || headers.ip.protocol == F::ICMP && icmp::is_error::<F>(skb, &headers)
    {
        return None;
    }
    let protocol = headers.ip.protocol;
    if prefilter::may_be_backend::<F>(&headers.ip.src, headers.src_port, protocol) {
        match table::get::<F>(&table::reply_key::<F>(&headers)) {
            Some(record) => {
                let flow = record.flow();
                if flow.backend_port != headers.src_port
                    || flow.backend_addr != headers.ip.src
                    || flow.flags & Flow::<F::Addr>::CHANGE_PORT != 0
                    || record::is_foreign_reply::<F>(flow, &headers)
                    || uplink::is_other(skb, flow)
                {
                    return None;
                }
                let (addr, port) = (flow.frontend_addr, flow.frontend_port);
                record.touch(&headers, Direction::ToClient);
                return Some(
                    match rewrite::tuple::<F>(skb, &mut headers, Side::Source, addr, port) {
                        Ok(()) => Outcome::NEXT,
                        Err(fault) => fault.into(),
                    },
                );
            }
            None if prefilter::may_be_masquerade::<F>(&headers.ip.dst)
                || peer::may_ask::<F>(&headers) =>
            {
                return None;
            }
            None => {}
        }
    }
    if outgoing::may_open::<F>(&headers) {
        return None;
    }
    if hint != Hint::None {
        let masqueraded = foreign::may_be_masqueraded::<F>(&headers, hint);
        return (!masqueraded).then_some(Outcome::NEXT);
    }
    let ours = prefilter::may_be_frontend::<F>(&headers.ip.dst)
        || prefilter::may_be_backend::<F>(&headers.ip.dst, headers.dst_port, protocol)
            && (reply_tuple::may_have_changed_port::<F>(&headers)
                || table::get::<F>(&table::client_key::<F>(&headers)).is_some());
    if ours || skb.is_host_originated() && service_range::is_entered::<F>(&headers) {
        None
    } else {
        Some(Outcome::NEXT)
    }
}
