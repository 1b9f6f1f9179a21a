//! Tells the agent which sockets are connected to a UDP backend that serves no
//! more. The kernel runs this for each value of `SOCKETS`, in all network
//! namespaces, whenever the agent reads the iterator (E27).

use aya_ebpf::{bindings::seq_file, cty::c_void, helpers::generated::bpf_seq_write};
use proxy_common::{
    net::Protocol,
    socket::{Peer, Peers, StaleSocket},
};

use super::decide;

/// The kernel's `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    _map: *const c_void,
    _socket: *const c_void,
    value: *const Peers,
}

/// The kernel's `struct bpf_iter_meta`, as far as it is used.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// Called once for each socket, and once more at the end without one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn stale_sockets(ctx: *const Context) -> i32 {
    // SAFETY: the kernel passes a valid context of this type.
    let (value, seq) = unsafe { ((*ctx).value, (*(*ctx).meta).seq) };
    if value.is_null() {
        return 0;
    }
    // SAFETY: not null. A connected socket has but its first entry in use. The
    // socket's lock is not held, so what is read may be halfway changed; the
    // agent looks at the socket itself before it does anything.
    let (peers, peer) = unsafe { (&*value, (*value).peers[0]) };
    if peer.flags & Peer::CONNECTED == 0
        || peer.protocol != Protocol::UDP
        || decide::is_serving(&peer)
    {
        return 0;
    }
    let stale = StaleSocket {
        netns_cookie: peers.netns_cookie,
        cookie: peers.cookie,
        backend_addr: peer.backend_addr,
        backend_port: peer.backend_port,
        zero: [0; 6],
    };
    // SAFETY: the sequence is the kernel's; the bytes are initialised. What
    // finds no room is asked for again by the kernel.
    unsafe {
        bpf_seq_write(
            seq,
            (&raw const stale).cast(),
            size_of::<StaleSocket>() as u32,
        )
    };
    0
}
