//! Translated replies that leave by their client's uplink instead of the device that
//! routing has led them to: see `flow::uplink`.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LOOKUP_OUTPUT,
};
use proxy_common::{counter::Counter, device::Device, net::Address as _};

use crate::{
    counters::count,
    flow::{table, uplink},
    hooks::Datapath,
    maps::{node, scratch::Scratch},
    packet::{
        barrier::opaque,
        hint::{self, Hint},
        parse,
        skb::{self, Link, Skb},
        verdict::{Fault, Outcome},
    },
    reply::refuse::{self, To},
    route,
};

/// Index of the loopback device of every network namespace.
const LOOPBACK: u32 = 1;

/// The slow path of translated replies that routing has led to another device than
/// the client's uplink: a program of its own, for the verifier's sake. What the
/// program before it knows is in scratch memory.
#[inline(always)]
pub fn slow<F: Datapath>(skb: Skb) -> i32 {
    let (_, link) = hint::resume(skb);
    match F::scratch() {
        Some(scratch) => leave::<F>(&skb.on(link), scratch).action(),
        None => Outcome::NEXT.action(),
    }
}

/// Sends the packet by its client's uplink, if that leads to the client; else the
/// way it is on.
#[inline(never)]
fn leave<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    let skb = *skb;
    let headers = &scratch.headers;
    let Some(record) =
        table::get::<F>(&scratch.key).filter(|_| !uplink::is_tagged(skb, headers.l3))
    else {
        return Outcome::NEXT;
    };
    let flow = record.flow();
    let uplink = flow.uplink;
    if is_down(uplink) {
        return Outcome::NEXT;
    }
    let client = scratch.key.addr;
    if F::KEEPS_TO_DEVICE && opaque(is_routed_here::<F>(&skb, &flow.frontend_addr, &client)) {
        return Outcome::NEXT;
    }
    let mut route = F::route(&flow.frontend_addr, &client, uplink);
    route.__bindgen_anon_1.tot_len = parse::longest::<F>(&skb, headers) as u16;
    match route::look_up(&skb, &mut route, BPF_FIB_LOOKUP_OUTPUT) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH if route.ifindex == uplink => {}
        BPF_FIB_LKUP_RET_FRAG_NEEDED if headers.ip.protocol != F::ICMP => {
            // SAFETY: the helper has written this field of the union.
            let mtu = unsafe { route.__bindgen_anon_1.mtu_result };
            return refuse::too_big::<F>(&skb, scratch, u32::from(mtu), To::Client);
        }
        _ => return Outcome::NEXT,
    }
    if skb.link == Link::None && skb::add_ethernet(&skb).is_err() {
        return Fault.into();
    }
    count(Counter::ReplyRedirected);
    hint::set(skb, Hint::Done);
    route::redirect::<F>(&route, &client)
}

/// Returns whether a route that is longer than a default route leads from the frontend to
/// the client by this device, whatever rules there are for the backend. A look-up that
/// keeps to the uplink would not see that one.
#[inline(never)]
fn is_routed_here<F: Datapath>(skb: &Skb, frontend: &F::Addr, client: &F::Addr) -> bool {
    let here = skb.ifindex();
    opaque(leads_by::<F>(skb, here, LOOPBACK, frontend, client))
        && !opaque(leads_by::<F>(skb, here, here, frontend, &F::Addr::ZERO))
}

/// Returns whether routing leads to `dst` by device `by`: of packets of the node itself,
/// if `from` is the loopback device, else of those that are to leave by `from`.
#[inline(never)]
fn leads_by<F: Datapath>(skb: &Skb, by: u32, from: u32, src: &F::Addr, dst: &F::Addr) -> bool {
    let flags = if from == LOOPBACK {
        0
    } else {
        BPF_FIB_LOOKUP_OUTPUT
    };
    let mut route = F::route(src, dst, from);
    matches!(
        route::look_up(skb, &mut route, flags),
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED
    ) && route.ifindex == by
}

/// Returns whether what leaves by an uplink is known to be lost. Of bonds, which have no
/// row, routing alone knows.
#[inline(always)]
fn is_down(uplink: u32) -> bool {
    node::device(uplink).is_some_and(|device| device.flags & Device::DOWN != 0)
}
