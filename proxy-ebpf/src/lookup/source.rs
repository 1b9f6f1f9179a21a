//! Addresses of this node that routing gives packets as their source.

use aya_ebpf::{
    Global,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_OUTPUT, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
    },
};
use proxy_common::net::{Address as _, BePort, Protocol};

use crate::{
    lookup::frontend,
    maps::{node, prefilter},
    packet::{headers::Ip, skb::Skb},
    route::{self, Route},
};

/// Set by the agent where look-ups return the source address (Linux 6.7).
#[unsafe(no_mangle)]
static KERNEL_HAS_FIB_SOURCE: Global<u8> = Global::new(0);

/// Finds the address of this node that a packet gets as its source on this device; zero
/// if there is none.
///
/// It is the one that routing would choose for the packet's destination: by the
/// route's own source, else by the next hop (IPv4) or the destination (IPv6, RFC
/// 6724), as netfilter's MASQUERADE does. Where the kernel does not say, it is
/// the device's, as the agent wrote it.
#[inline(never)]
pub fn masquerade_source<F: Route>(skb: &Skb, ip: &Ip<F::Addr>, found: &mut F::Addr) {
    let Some(device) = node::device(skb.ifindex()) else {
        *found = F::Addr::ZERO;
        return;
    };
    let own = F::masquerade_addr(device);
    *found = own;
    if KERNEL_HAS_FIB_SOURCE.load() == 0 {
        return;
    }
    // Routes lead to bridges, not to their ports.
    let routed = if device.bridge == 0 {
        skb.ifindex()
    } else {
        device.bridge
    };
    let mut route = F::route(&ip.src, &ip.dst, routed);
    if !finds_source(skb, &mut route) {
        return;
    }
    let source = F::source(&route);
    // A load balancer's address on the device may be the node's today and
    // another one's tomorrow.
    let is_replaced = F::are_of_one_subnet(&source, &own) && is_frontend::<F>(&source);
    if !source.is_zero() && !is_replaced {
        *found = source;
    }
}

/// Looks up the address of this node that routing chooses on a device.
#[inline(always)]
fn finds_source(skb: &Skb, route: &mut bpf_fib_lookup) -> bool {
    let result = route::look_up(skb, route, BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SRC);
    result == BPF_FIB_LKUP_RET_SUCCESS
        || result == BPF_FIB_LKUP_RET_NO_NEIGH
        || result == BPF_FIB_LKUP_RET_FRAG_NEEDED
}

/// Returns whether a backend answers a client by way of this node, although both are reached by the bridge that the device is a port of:
/// they are of different subnets there, of each of which the node has an
/// address. Where the kernel does not say, they count as neighbours.
#[inline(never)]
pub fn is_gateway<F: Route>(skb: &Skb, client: &F::Addr, backend: &F::Addr) -> bool {
    let Some(device) = node::device(skb.ifindex()) else {
        return false;
    };
    if device.bridge == 0 || KERNEL_HAS_FIB_SOURCE.load() == 0 {
        return false;
    }
    let mut route = F::route(client, backend, device.bridge);
    if !finds_source(skb, &mut route) {
        return false;
    }
    let towards_backend = F::source(&route);
    route = F::route(backend, client, device.bridge);
    !finds_source(skb, &mut route) || F::source(&route) != towards_backend
}

/// Returns whether a Service has this address.
#[inline(always)]
fn is_frontend<F: Route>(addr: &F::Addr) -> bool {
    prefilter::may_be_frontend::<F>(addr)
        && frontend::exact::<F>(addr, BePort::ZERO, Protocol::ANY).is_some()
}
