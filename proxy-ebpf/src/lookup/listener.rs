//! Processes that listen at a frontend's very address, because their node or network
//! namespace has it as an address of its own: DNS caches do, and answer for the Service
//! on their node, and clusters within a container.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    cty::c_void,
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
    programs::SockAddrContext,
};
use proxy_common::{
    family::{V4, V6},
    net::{AddrV4, AddrV6, Address as _, BePort, Protocol},
};

use crate::{
    lookup::client,
    maps::tables::Tables,
    packet::{headers::Headers, skb::Skb},
};

/// "The network namespace of this device or socket", as look-ups spell it.
const CURRENT_NETNS: u64 = u64::MAX;

/// One part of `bpf_sock_tuple`.
#[repr(C)]
struct Tuple<A> {
    src: A,
    dst: A,
    src_port: BePort,
    dst_port: BePort,
}

/// Addresses that sockets are bound to, by family.
pub trait Bound: Tables {
    /// The socket's own address.
    ///
    /// # Safety
    ///
    /// The socket is one that a look-up returned, and not released.
    unsafe fn address_of(socket: *const bpf_sock) -> Self::Addr;
}

impl Bound for V4 {
    #[inline(always)]
    unsafe fn address_of(socket: *const bpf_sock) -> AddrV4 {
        // SAFETY: as the caller promises.
        let addr = unsafe { (&raw const (*socket).src_ip4).read_volatile() };
        AddrV4 {
            octets: addr.to_ne_bytes(),
        }
    }
}

impl Bound for V6 {
    #[inline(always)]
    unsafe fn address_of(socket: *const bpf_sock) -> AddrV6 {
        // SAFETY: as the caller promises. The verifier takes words only.
        let words = unsafe {
            let words = (&raw const (*socket).src_ip6).cast::<u32>();
            [0, 1, 2, 3].map(|index| words.add(index).read_volatile())
        };
        // SAFETY: sixteen plain bytes.
        unsafe { core::mem::transmute::<[u32; 4], AddrV6>(words) }
    }
}

/// Returns whether a process of this node has the very address and port that a packet is
/// addressed to. One that listens on all addresses does not count.
#[inline(never)]
pub fn takes_packet<F: Bound>(skb: &Skb, headers: &Headers<F::Addr>) -> bool {
    if client::local_addr::<F>(&headers.ip.dst).is_none() {
        return false;
    }
    let tuple = Tuple {
        src: headers.ip.src,
        dst: headers.ip.dst,
        src_port: headers.src_port,
        dst_port: headers.dst_port,
    };
    is_taken::<F>(skb.raw().cast(), headers.ip.protocol, tuple)
}

/// The same of a call, in the network namespace of its socket.
#[inline(never)]
pub fn takes_call<F: Bound>(
    ctx: &SockAddrContext,
    addr: &F::Addr,
    port: BePort,
    protocol: Protocol,
) -> bool {
    let tuple = Tuple {
        src: F::Addr::ZERO,
        dst: *addr,
        src_port: BePort::ZERO,
        dst_port: port,
    };
    is_taken::<F>(ctx.sock_addr.cast(), protocol, tuple)
}

#[inline(always)]
fn is_taken<F: Bound>(context: *mut c_void, protocol: Protocol, mut tuple: Tuple<F::Addr>) -> bool {
    let dst = tuple.dst;
    let size = size_of::<Tuple<F::Addr>>() as u32;
    let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
    // SAFETY: valid context and tuple of the stated size.
    let socket = unsafe {
        match protocol {
            Protocol::TCP => bpf_sk_lookup_tcp(context, tuple, size, CURRENT_NETNS, 0),
            Protocol::UDP => bpf_sk_lookup_udp(context, tuple, size, CURRENT_NETNS, 0),
            // Programs cannot look up sockets of other protocols.
            _ => return false,
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a socket that was found, released exactly once and not used after that.
    unsafe {
        let bound = F::address_of(socket);
        bpf_sk_release(socket.cast());
        bound == dst
    }
}
