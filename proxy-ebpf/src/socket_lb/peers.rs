//! A socket's value in `SOCKETS`: the frontends it connected or sent to.

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use proxy_common::{
    flow::ticks_from_seconds,
    net::{AddrV6, BePort, Protocol},
    socket::{Peer, Peers},
};

use crate::{clock::now, maps::tables::SOCKETS, socket_lb::address};

/// [`fitness`] as a function that the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fitness_of_peer(entry: *const Peer, peer: *const Peer) -> u32 {
    // SAFETY: the verifier sees to it that they are null or valid, and the caller has
    // lent them.
    let arguments = unsafe { (entry.as_ref(), peer.as_ref()) };
    let (Some(entry), Some(peer)) = arguments else {
        return CLASH;
    };
    fitness(entry, peer)
}

/// The time that a frontend must not have been used before its entry is given
/// to another one: as long as an unanswered UDP flow is kept.
const IDLE: u32 = ticks_from_seconds(30);

/// The socket's value, if anything of it was ever translated.
#[expect(
    clippy::mut_from_ref,
    reason = "the value is the kernel's, not the context's; each program has one reference at a time"
)]
#[inline(always)]
fn get(ctx: &SockAddrContext) -> Option<&mut Peers> {
    // SAFETY: the context has its socket; the value lives as long as that, and
    // the socket's lock, which is held, keeps others away.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() }
}

/// The same, made if it is not there. None if the socket's memory is used up.
#[expect(
    clippy::mut_from_ref,
    reason = "the value is the kernel's, not the context's; each program has one reference at a time"
)]
#[inline(always)]
fn get_or_create(ctx: &SockAddrContext) -> Option<&mut Peers> {
    // SAFETY: as above.
    let peers = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() }?;
    if peers.cookie == 0 {
        // SAFETY: the program's own context.
        unsafe {
            peers.netns_cookie = bpf_get_netns_cookie(address::raw(ctx));
            peers.cookie = bpf_get_socket_cookie(address::raw(ctx));
        }
    }
    Some(peers)
}

/// Makes this what the socket is connected to. What it was connected to before
/// is kept: it still is, if the kernel refuses to connect it. False if the new
/// peer cannot be remembered.
#[inline(always)]
pub fn replace(ctx: &SockAddrContext, peer: &Peer) -> bool {
    let Some(peers) = get_or_create(ctx) else {
        return false;
    };
    vacate_others(peers);
    let [a, b, ..] = &mut peers.peers;
    if a.flags & Peer::CONNECTED != 0 && !a.has_backend(&peer.backend_addr, peer.backend_port) {
        *b = *a;
    }
    *a = *peer;
    true
}

/// Adds one more frontend, or gives one that is known another backend. False
/// if another frontend has the backend, or if there is no room.
#[inline(always)]
pub fn add(ctx: &SockAddrContext, peer: &Peer) -> bool {
    let Some(peers) = get_or_create(ctx) else {
        return false;
    };
    let [a, b, c, d] = &mut peers.peers;
    let (in_a, in_b) = (fitness_of_peer(a, peer), fitness_of_peer(b, peer));
    let (in_c, in_d) = (fitness_of_peer(c, peer), fitness_of_peer(d, peer));
    if in_a == CLASH || in_b == CLASH || in_c == CLASH || in_d == CLASH {
        return false;
    }
    let (front, in_front) = if in_a >= in_b { (a, in_a) } else { (b, in_b) };
    let (back, in_back) = if in_c >= in_d { (c, in_c) } else { (d, in_d) };
    let (best, fitness) = if in_front >= in_back {
        (front, in_front)
    } else {
        (back, in_back)
    };
    if fitness <= IDLE {
        return false;
    }
    *best = *peer;
    true
}

/// Another frontend has the backend, or it has asked something itself.
const CLASH: u32 = u32::MAX;
/// The entry is the frontend's own, or of a backend that has long asked nothing.
const OWN: u32 = u32::MAX - 1;
/// The entry is not in use.
const FREE: u32 = u32::MAX - 2;

/// Returns how well an entry suits a peer that is to be remembered: the better, the
/// longer it has not been used.
#[inline(always)]
fn fitness(entry: &Peer, peer: &Peer) -> u32 {
    if entry.has_frontend(&peer.frontend_addr, peer.frontend_port) {
        OWN
    } else if entry.has_backend(&peer.backend_addr, peer.backend_port) {
        let is_over =
            entry.flags & Peer::ITSELF != 0 && peer.last_used.wrapping_sub(entry.last_used) > IDLE;
        if is_over { OWN } else { CLASH }
    } else if entry.frontend_port == BePort::ZERO {
        FREE
    } else {
        peer.last_used.wrapping_sub(entry.last_used).min(FREE - 1)
    }
}

/// The socket connects to this address itself. What it was connected to before is
/// kept: it still is, if the kernel refuses to connect it.
#[inline(always)]
pub fn leave(ctx: &SockAddrContext, addr: &AddrV6, port: BePort) {
    if let Some(peers) = get(ctx) {
        vacate_others(peers);
        let [a, ..] = &mut peers.peers;
        if a.flags & Peer::CONNECTED == 0 || a.has_backend(addr, port) {
            a.frontend_port = BePort::ZERO;
        }
    }
}

/// Forgets all but the first entry.
#[inline(always)]
fn vacate_others(peers: &mut Peers) {
    let [_, b, c, d] = &mut peers.peers;
    b.frontend_port = BePort::ZERO;
    c.frontend_port = BePort::ZERO;
    d.frontend_port = BePort::ZERO;
    peers.flags = 0;
}

/// Returns whether the socket is the packet path's: see [`Peers::CROWDED`].
#[inline(always)]
pub fn is_crowded(ctx: &SockAddrContext) -> bool {
    get(ctx).is_some_and(|peers| peers.flags & Peers::CROWDED != 0)
}

/// Leaves the socket to the packet path until it connects.
#[inline(always)]
pub fn set_crowded(ctx: &SockAddrContext) {
    if let Some(peers) = get(ctx) {
        peers.flags |= Peers::CROWDED;
    }
}

/// Forgets who led to this backend: the socket uses it directly. Not if it only
/// answers.
#[inline(always)]
pub fn forget_backend(ctx: &SockAddrContext, addr: &AddrV6, port: BePort) {
    if let Some(peer) = by_backend(ctx, addr, port)
        && peer.flags & Peer::ITSELF == 0
    {
        peer.frontend_port = BePort::ZERO;
    }
}

/// Notes that this backend has sent the socket a datagram which no frontend's entry
/// tells to be an answer. What the socket says to it next is an answer, and if it
/// asks by way of a frontend, the packet path keeps the two apart. A note that finds
/// no room is left out, and so is one of a backend that the socket has left a frontend
/// for: that answers.
#[inline(always)]
pub fn note(ctx: &SockAddrContext, addr: &AddrV6, port: BePort) {
    let left = |peer: &Peer| peer.backend_port == port && peer.backend_addr == *addr;
    if find(ctx, left).is_some() {
        return;
    }
    let peer = Peer {
        frontend_addr: *addr,
        backend_addr: *addr,
        frontend_port: port,
        backend_port: port,
        last_used: now(),
        protocol: Protocol::UDP,
        flags: Peer::ITSELF,
        ..Peer::VACANT
    };
    add(ctx, &peer);
}

/// Returns whether the socket is connected to this backend.
#[inline(always)]
pub fn is_connected_to(ctx: &SockAddrContext, addr: &AddrV6, port: BePort) -> bool {
    by_backend(ctx, addr, port).is_some_and(|peer| peer.flags & Peer::CONNECTED != 0)
}

/// The entry with this backend.
#[inline(always)]
pub fn by_backend<'a>(
    ctx: &'a SockAddrContext,
    addr: &AddrV6,
    port: BePort,
) -> Option<&'a mut Peer> {
    find(ctx, |peer| peer.has_backend(addr, port))
}

/// The entry with this frontend.
#[inline(always)]
pub fn by_frontend<'a>(
    ctx: &'a SockAddrContext,
    addr: &AddrV6,
    port: BePort,
) -> Option<&'a mut Peer> {
    find(ctx, |peer| peer.has_frontend(addr, port))
}

/// Not a loop: the compiler would count it by pointers, which the verifier
/// cannot follow.
#[inline(always)]
fn find(ctx: &SockAddrContext, is_wanted: impl Fn(&Peer) -> bool) -> Option<&mut Peer> {
    let [a, b, c, d] = &mut get(ctx)?.peers;
    if is_wanted(a) {
        Some(a)
    } else if is_wanted(b) {
        Some(b)
    } else if is_wanted(c) {
        Some(c)
    } else if is_wanted(d) {
        Some(d)
    } else {
        None
    }
}
