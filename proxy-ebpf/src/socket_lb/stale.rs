//! Tells the agent whether a socket is connected to a UDP backend that serves
//! no more. Not attached: the agent asks by test run, in the socket's network
//! namespace, because only programs can read what `SOCKETS` has of a socket.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get, bpf_skb_load_bytes,
    },
};
use core::mem::MaybeUninit;

use proxy_common::{
    net::{AddrV6, Address as _, Protocol},
    socket::{Peer, Peers, SocketQuery},
};

use crate::{
    maps::tables::SOCKETS,
    packet::skb::{ETH_LEN, Skb},
    socket_lb::decide,
};

/// "The network namespace of this device", as the socket look-up spells it.
const CURRENT_NETNS: u64 = u64::MAX;

/// 1 if the socket that the packet asks about is stale, else 0.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let mut query = MaybeUninit::<SocketQuery>::uninit();
    // SAFETY: the buffer has the stated size; the helper fills all of it or
    // says that it did not.
    let query = unsafe {
        let failed = bpf_skb_load_bytes(
            skb.raw().cast(),
            ETH_LEN,
            query.as_mut_ptr().cast(),
            size_of::<SocketQuery>() as u32,
        );
        if failed != 0 {
            return 0;
        }
        query.assume_init()
    };
    let socket = find(skb, &query);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: a valid socket. Its lock is not held, so what is read may be
    // halfway changed; the agent ends a socket only if it is still connected to
    // the address that it asked about.
    let stale = unsafe {
        let value: *mut Peers = bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            socket.cast(),
            core::ptr::null_mut(),
            0,
        )
        .cast();
        value.as_ref().is_some_and(|value| is_stale(value, &query))
    };
    // SAFETY: found just now, and released once.
    unsafe { bpf_sk_release(socket.cast()) };
    i32::from(stale)
}

/// A connected socket uses its first entry, and the second one where it is still
/// connected to what it was before.
#[inline(always)]
fn is_stale(value: &Peers, query: &SocketQuery) -> bool {
    let [current, former, ..] = &value.peers;
    value.cookie == query.cookie && (has_left(current, query) || has_left(former, query))
}

/// Returns whether the socket is connected to the backend of this entry, which serves no
/// more.
#[inline(always)]
fn has_left(peer: &Peer, query: &SocketQuery) -> bool {
    peer.flags & Peer::CONNECTED != 0
        && peer.protocol == Protocol::UDP
        && peer.has_backend(&query.peer_addr, query.peer_port)
        && !decide::is_serving(peer)
}

/// The socket with these addresses, or null. It must be released.
#[inline(always)]
fn find(skb: Skb, query: &SocketQuery) -> *mut bpf_sock {
    // SAFETY: integers, of which zeros are values.
    let mut tuple: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
    let size = match (query.peer_addr.unmapped(), query.local_addr.unmapped()) {
        (Some(peer), Some(local)) => {
            // SAFETY: both members are integers only.
            let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
            ipv4.saddr = u32::from_ne_bytes(peer.octets);
            ipv4.daddr = u32::from_ne_bytes(local.octets);
            ipv4.sport = query.peer_port.to_bits();
            ipv4.dport = query.local_port.to_bits();
            size_of_val(ipv4)
        }
        (None, None) => {
            // SAFETY: as above.
            let ipv6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
            ipv6.saddr = words(&query.peer_addr);
            ipv6.daddr = words(&query.local_addr);
            ipv6.sport = query.peer_port.to_bits();
            ipv6.dport = query.local_port.to_bits();
            size_of_val(ipv6)
        }
        _ => return core::ptr::null_mut(),
    };
    // SAFETY: valid context, and a tuple of at least the stated size.
    unsafe {
        bpf_sk_lookup_udp(
            skb.raw().cast(),
            &raw mut tuple,
            size as u32,
            CURRENT_NETNS,
            0,
        )
    }
}

#[inline(always)]
fn words(addr: &AddrV6) -> [u32; 4] {
    [addr.word(0), addr.word(1), addr.word(2), addr.word(3)]
}
