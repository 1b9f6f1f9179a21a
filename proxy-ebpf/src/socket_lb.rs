//! The socket LB: translates the destination of a process's call, once for each connection,
//! so that no packet has to be.
//!
//! | call | does |
//! |---|---|
//! | `connect` | destination := backend |
//! | `sendto`, `sendmsg` of an unconnected UDP socket | destination := backend |
//! | `recvfrom`, `recvmsg` of a UDP socket | source := frontend |
//! | `getpeername` | peer := frontend |
//!
//! What is not served here goes on untranslated and is the packet path's: both
//! give the same answer, so leaving a call to it is always right (E17).
//!
//! These programs run in process context: another task's run may come in
//! between on the same CPU. They keep everything on the stack or in `SOCKETS`,
//! which the socket's lock protects, and never use the scratch memory.

use aya_ebpf::{Global, cty::c_int, helpers::generated::bpf_set_retval, programs::SockAddrContext};
use proxy_common::{
    counter::Counter,
    family::{V4, V6},
    net::{AddrV6, BePort, Protocol},
    socket::Peer,
};

pub use self::address::{CallV4, CallV6};
use self::{
    address::{Call, Wide},
    decide::{Decision, Target},
};
use crate::{clock::now, counters, maps::prefilter};

mod address;
mod decide;
pub mod peers;
mod session_affinity;
pub mod stale;

/// Verdict: the call goes on, with the address as it is now.
const GO_ON: i32 = 1;
/// Verdict: the call fails, with the error that was set.
const FAIL: i32 = 0;
/// The error of a closed port.
const ECONNREFUSED: c_int = 111;

/// Set by the agent where the kernel knows `bpf_set_retval` (5.18).
#[unsafe(no_mangle)]
static KERNEL_HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// `connect` of a TCP or UDP socket.
#[inline(always)]
pub fn connect<C: Call>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = C::read(ctx);
    match addr.unmapped() {
        Some(addr) => connect_to::<C, V4>(ctx, addr, port),
        None => connect_to::<C, V6>(ctx, addr, port),
    }
}

#[inline(always)]
fn connect_to<C: Call, F: Wide>(ctx: &SockAddrContext, addr: F::Addr, port: BePort) -> i32 {
    let mut target = Target::<F::Addr>::default();
    match decide::decide::<F>(ctx, true, &addr, port, &mut target) {
        Decision::Leave => {}
        Decision::Refuse => return refuse(),
        Decision::Serve => {
            if let Some(mut peer) = decide::backend::<F>(&addr, port, &target, 0) {
                peer.flags = Peer::CONNECTED;
                if peers::replace(ctx, &peer) {
                    C::write(ctx, &peer.backend_addr, peer.backend_port);
                    counters::count_preemptible(Counter::SocketTranslated);
                    return GO_ON;
                }
            }
        }
    }
    peers::leave(ctx, &F::wide(&addr), port);
    GO_ON
}

/// `sendto` or `sendmsg` of a UDP socket, with an address.
#[inline(always)]
pub fn sendmsg<C: Call>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = C::read(ctx);
    if address::is_connected_to(ctx, &addr, port) && peers::is_connected_to(ctx, &addr, port) {
        // An IPv6 socket that is connected to a mapped address comes here with
        // each datagram, and has its backend.
        return GO_ON;
    }
    match addr.unmapped() {
        Some(addr) => send_to::<C, V4>(ctx, addr, port),
        None => send_to::<C, V6>(ctx, addr, port),
    }
}

#[inline(always)]
fn send_to<C: Call, F: Wide>(ctx: &SockAddrContext, addr: F::Addr, port: BePort) -> i32 {
    let mut target = Target::<F::Addr>::default();
    match decide::decide::<F>(ctx, false, &addr, port, &mut target) {
        Decision::Leave => {
            // What comes from there now is its own answer.
            peers::forget_backend(ctx, &F::wide(&addr), port);
            return GO_ON;
        }
        Decision::Refuse => return refuse(),
        Decision::Serve => {}
    }
    if peers::is_crowded(ctx) {
        return GO_ON;
    }
    let frontend = F::wide(&addr);
    if let Some(peer) = peers::by_frontend(ctx, &frontend, port)
        && decide::is_serving(peer)
    {
        peer.last_used = now();
        C::write(ctx, &peer.backend_addr, peer.backend_port);
        return GO_ON;
    }
    let mut attempt = 0;
    while attempt < decide::ATTEMPTS {
        if let Some(peer) = decide::backend::<F>(&addr, port, &target, attempt)
            && peers::add(ctx, &peer)
        {
            C::write(ctx, &peer.backend_addr, peer.backend_port);
            counters::count_preemptible(Counter::SocketTranslated);
            return GO_ON;
        }
        attempt += 1;
    }
    peers::set_crowded(ctx);
    counters::count_preemptible(Counter::SocketCrowded);
    GO_ON
}

/// `recvfrom` and `recvmsg` of a UDP socket: who is at the other end.
#[inline(always)]
pub fn recvmsg<C: Call>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = C::read(ctx);
    if let Some(peer) = peers::by_backend(ctx, &addr, port) {
        if peer.flags & Peer::ITSELF == 0 {
            C::write(ctx, &peer.frontend_addr, peer.frontend_port);
        } else {
            peer.last_used = now();
        }
    } else if may_be_backend(&addr, port) && !address::is_connected(ctx) {
        peers::note(ctx, &addr, port);
    }
    GO_ON
}

/// Returns whether this may be a UDP backend.
#[inline(always)]
fn may_be_backend(addr: &AddrV6, port: BePort) -> bool {
    match addr.unmapped() {
        Some(addr) => prefilter::may_be_backend::<V4>(&addr, port, Protocol::UDP),
        None => prefilter::may_be_backend::<V6>(addr, port, Protocol::UDP),
    }
}

/// `getpeername`: who is at the other end.
#[inline(always)]
pub fn name_peer<C: Call>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = C::read(ctx);
    if let Some(peer) = peers::by_backend(ctx, &addr, port) {
        C::write(ctx, &peer.frontend_addr, peer.frontend_port);
    }
    GO_ON
}

/// Makes the call fail as one to a closed port does, but at once (S44).
#[inline(always)]
fn refuse() -> i32 {
    if KERNEL_HAS_SET_RETVAL.load() == 0 {
        // The packet path refuses too.
        return GO_ON;
    }
    counters::count_preemptible(Counter::SocketRefused);
    // SAFETY: the helper takes a number.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}
