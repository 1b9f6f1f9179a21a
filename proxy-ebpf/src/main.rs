//! Tandem's datapath. A packet runs through it in this order:
//!
//! ```text
//! entry points (here) ─► hooks ─► packet::parse ─► flow, lookup (maps) ─► packet::rewrite ─► verdict
//! ```
//!
//! The attached programs know the `fast` path: packets that are not ours and
//! packets of open flows. All else they hand to a slow-path program by tail
//! call, which has a stack and a verifier budget of its own.
//!
//! The modules are layers. Each imports only those before it:
//!
//! | module | is about |
//! |---|---|
//! | `counters`, `clock` | what all layers use |
//! | `packet` | bytes: reading, rewriting, verdicts; knows no map |
//! | `maps` | the maps, scratch memory, tail calls |
//! | `route` | what the host's routing tables say |
//! | `lookup` | what addresses are to this node; changes no table |
//! | `flow` | the flow table and what belongs to it |
//! | `reply` | answers to clients, ICMP errors about flows |
//! | `hooks` | the programs of devices |
//! | `socket_lb` | the programs of sockets, which use no scratch memory |
//!
//! Rewriting happens at the edges of the host only: on the device that faces
//! the client and on the one that faces the backend. In between, routing and
//! netfilter see real addresses. Six translations do it:
//!
//! | packet | hook | write | where |
//! |---|---|---|---|
//! | client → frontend | ingress, client's device | dst := backend | `hooks::ingress` |
//! | backend → client | egress, client's device | src := frontend | `hooks::egress` |
//! | client → backend, masqueraded | egress, backend's device | src := device's address | `hooks::masquerade` |
//! | backend → masquerade address | ingress, backend's device | dst := client | `hooks::masquerade` |
//! | host → frontend | egress | dst := backend, redirected | `hooks::host` |
//! | backend → host | ingress | src := frontend, redirected | `hooks::host` |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_ptr_alignment,
    clippy::needless_pass_by_value,
    unreachable_pub,
    reason = "BPF: calls cost, helpers speak C integers, packet memory has no Rust alignment, a program's context is passed by value and it has no outside"
)]

mod clock;
mod counters;
mod flow;
mod hooks;
mod lookup;
mod maps;
mod packet;
mod reply;
mod route;
mod socket_lb;
#[cfg(feature = "test-programs")]
mod test_programs;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};
use proxy_common::family::{V4, V6};

use crate::{
    flow::sweep,
    hooks::{egress, explain, host, ingress, symmetric_return},
    packet::skb::{Link, Skb},
    socket_lb::{CallV4, CallV6},
};

/// Ingress of devices with Ethernet headers.
#[classifier]
pub fn ingress(ctx: TcContext) -> i32 {
    ingress::run(Skb::new(&ctx, Link::Ethernet))
}

/// Egress of devices with Ethernet headers.
#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    egress::run(Skb::new(&ctx, Link::Ethernet))
}

/// Ingress of devices without link-layer header (tun, `WireGuard`, ipip).
#[classifier]
pub fn ingress_l3(ctx: TcContext) -> i32 {
    ingress::run(Skb::new(&ctx, Link::None))
}

/// Egress of devices without link-layer header.
#[classifier]
pub fn egress_l3(ctx: TcContext) -> i32 {
    egress::run(Skb::new(&ctx, Link::None))
}

/// Slow path of `ingress` for IPv4. Reached by tail call, like those below.
#[classifier]
pub fn ingress_slow_v4(ctx: TcContext) -> i32 {
    ingress::slow::<V4>(Skb::new(&ctx, Link::Ethernet))
}

/// Slow path of `ingress` for IPv6.
#[classifier]
pub fn ingress_slow_v6(ctx: TcContext) -> i32 {
    ingress::slow::<V6>(Skb::new(&ctx, Link::Ethernet))
}

/// Slow path of `egress` for IPv4.
#[classifier]
pub fn egress_slow_v4(ctx: TcContext) -> i32 {
    egress::slow::<V4>(Skb::new(&ctx, Link::Ethernet))
}

/// Slow path of `egress` for IPv6.
#[classifier]
pub fn egress_slow_v6(ctx: TcContext) -> i32 {
    egress::slow::<V6>(Skb::new(&ctx, Link::Ethernet))
}

/// Slow path of `egress` for IPv4 packets of this host's own processes to frontends.
#[classifier]
pub fn host_slow_v4(ctx: TcContext) -> i32 {
    host::slow::<V4>(Skb::new(&ctx, Link::Ethernet))
}

/// The same for IPv6.
#[classifier]
pub fn host_slow_v6(ctx: TcContext) -> i32 {
    host::slow::<V6>(Skb::new(&ctx, Link::Ethernet))
}

/// Slow path of `egress` for translated IPv4 replies to clients that came in by
/// another device than routing has chosen.
#[classifier]
pub fn uplink_slow_v4(ctx: TcContext) -> i32 {
    symmetric_return::slow::<V4>(Skb::new(&ctx, Link::Ethernet))
}

/// The same for IPv6.
#[classifier]
pub fn uplink_slow_v6(ctx: TcContext) -> i32 {
    symmetric_return::slow::<V6>(Skb::new(&ctx, Link::Ethernet))
}

/// `connect` of IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket_lb::connect::<CallV4>(&ctx)
}

/// `connect` of IPv6 sockets.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket_lb::connect::<CallV6>(&ctx)
}

/// `sendto` and `sendmsg` of IPv4 UDP sockets, with an address.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket_lb::sendmsg::<CallV4>(&ctx)
}

/// `sendto` and `sendmsg` of IPv6 UDP sockets, with an address.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket_lb::sendmsg::<CallV6>(&ctx)
}

/// `recvfrom` and `recvmsg` of IPv4 UDP sockets.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket_lb::recvmsg::<CallV4>(&ctx)
}

/// `recvfrom` and `recvmsg` of IPv6 UDP sockets.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket_lb::recvmsg::<CallV6>(&ctx)
}

/// `getpeername` of IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket_lb::name_peer::<CallV4>(&ctx)
}

/// `getpeername` of IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket_lb::name_peer::<CallV6>(&ctx)
}

/// Removes idle flows. Not attached: the agent runs it by test run.
#[classifier]
pub fn sweep(_ctx: TcContext) -> i32 {
    sweep::run()
}

/// Says what would become of the packet. Not attached: the agent runs it by
/// test run.
#[classifier]
pub fn explain(ctx: TcContext) -> i32 {
    explain::run(Skb::new(&ctx, Link::Ethernet))
}

/// Says whether a socket is connected to a UDP backend that serves no more. Not
/// attached: the agent runs it by test run.
#[classifier]
pub fn stale_socket(ctx: TcContext) -> i32 {
    socket_lb::stale::run(Skb::new(&ctx, Link::Ethernet))
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel lets only GPL-compatible programs use its helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
