//! Packets of open flows on their way to the backend.

use aya_ebpf::bindings::BPF_FIB_LKUP_RET_SUCCESS;
use proxy_common::{config::Config, flow::Flow};

use crate::{
    flow::{
        fragment::{self, Hook},
        record::{Direction, Record},
        uplink,
    },
    hooks::Datapath,
    lookup::arrival::Arrival,
    maps::{node, scratch::Scratch},
    packet::{
        headers::{Headers, Side},
        hint::{self, Hint},
        rewrite,
        skb::Skb,
        verdict::{Fault, Outcome},
    },
    route,
};

/// Sends a packet on to its flow's backend, on the slow path.
#[inline(never)]
pub fn forward_slowly<F: Datapath>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
    arrival: Arrival,
) -> Outcome {
    let flow = record.flow();
    let (port, flags) = (flow.backend_port, flow.flags);
    scratch.reply.backend_addr = flow.backend_addr;
    let (headers, addr) = (&mut scratch.headers, &scratch.reply.backend_addr);
    record.touch_by_client(headers);
    uplink::follow_slowly::<F>(skb, record, headers.l3);
    if may_be_bridged::<F>(arrival, flags)
        && stay_on_bridge_slowly::<F>(skb, headers, addr).is_err()
        || F::rewrite(*skb, headers, Side::Destination, addr, port).is_err()
    {
        return Fault.into();
    }
    if flags & Flow::<F::Addr>::MASQUERADE != 0 {
        // Where it leaves, a later fragment may come first.
        fragment::remember::<F>(headers, Hook::Egress);
    }
    hint::set(*skb, hint_after::<F>(flags, Hint::Opened));
    Outcome::NEXT
}

#[inline(never)]
fn stay_on_bridge_slowly<F: Datapath>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    backend: &F::Addr,
) -> Result<(), Fault> {
    stay_on_bridge::<F>(*skb, headers, backend)
}

/// The hint for a packet that was sent on by a flow with these flags: what is left to do;
/// `done` if it keeps its source.
#[inline(always)]
fn hint_after<F: Datapath>(flags: u8, done: Hint) -> Hint {
    if flags & Flow::<F::Addr>::MASQUERADE != 0 {
        Hint::Masquerade
    } else {
        done
    }
}

/// Sends a packet on to its flow's backend, on the fast path.
#[inline(always)]
pub fn forward<F: Datapath>(
    skb: Skb,
    headers: &mut Headers<F::Addr>,
    record: Record<F>,
    arrival: Arrival,
) -> Outcome {
    match try_forward::<F>(skb, headers, record, arrival) {
        Ok(()) => Outcome::NEXT,
        Err(fault) => fault.into(),
    }
}

#[inline(always)]
fn try_forward<F: Datapath>(
    skb: Skb,
    headers: &mut Headers<F::Addr>,
    record: Record<F>,
    arrival: Arrival,
) -> Result<(), Fault> {
    let flow = record.flow();
    let (addr, port, flags) = (flow.backend_addr, flow.backend_port, flow.flags);
    record.touch(headers, Direction::ToBackend);
    uplink::follow::<F>(skb, record, headers.l3);
    if may_be_bridged::<F>(arrival, flags) {
        stay_on_bridge::<F>(skb, headers, &addr)?;
    }
    rewrite::tuple::<F>(skb, headers, Side::Destination, addr, port)?;
    hint::set(skb, hint_after::<F>(flags, Hint::Done));
    Ok(())
}

/// Returns whether the replies of a flow with these flags may be bridged: not to an
/// address of this host (nor may a port send back what came in by it), nor where
/// this host is the backend's gateway.
#[inline(always)]
fn may_be_bridged<F: Datapath>(arrival: Arrival, flags: u8) -> bool {
    flags & (Flow::<F::Addr>::MASQUERADE | Flow::<F::Addr>::ROUTED) == 0
        && (arrival == Arrival::Bridge
            || node::config().is_some_and(|config| config.flags & Config::PORT_HAS_BRIDGE_MAC != 0))
}

/// Where client and backend are ports of one bridge, replies are bridged and
/// never routed. Requests must be bridged too, or conntrack sees half of each
/// connection and calls it invalid (E2): give the frame the backend's MAC. Not
/// where the bridge leads to a gateway: replies come back by way of this host.
#[inline(always)]
fn stay_on_bridge<F: Datapath>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    backend: &F::Addr,
) -> Result<(), Fault> {
    let Some(device) = node::device(skb.ifindex()).filter(|device| device.bridge != 0) else {
        return Ok(());
    };
    let mut route = F::route(&headers.ip.src, backend, device.bridge);
    if route::look_up(&skb, &mut route, 0) == BPF_FIB_LKUP_RET_SUCCESS
        && route.ifindex == device.bridge
        && F::is_neighbour(&route, backend)
    {
        skb.write::<[u8; 6]>(0, route.dmac)?;
    }
    Ok(())
}
