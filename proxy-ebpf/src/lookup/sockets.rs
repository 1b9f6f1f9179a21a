//! Sockets of this node that a reply tuple would take packets from.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use proxy_common::{
    family::{Family, V4, V6},
    masquerade::MasqueradeKey,
    net::{AddrV4, AddrV6, BePort, Protocol},
};

use crate::packet::skb::Skb;

/// `BPF_TCP_LISTEN`.
const TCP_LISTEN: u32 = 10;
/// "The network namespace of this device", as the socket look-ups spell it.
const CURRENT_NETNS: u64 = u64::MAX;

/// Sockets of this host, by family.
pub trait Sockets: Family {
    /// Returns whether a socket of this host would take packets of this reply tuple.
    fn has_socket(skb: Skb, key: &MasqueradeKey<Self::Addr>) -> bool;
}

/// IPv4 part of `bpf_sock_tuple`.
#[repr(C)]
struct TupleV4 {
    src: AddrV4,
    dst: AddrV4,
    src_port: BePort,
    dst_port: BePort,
}

/// IPv6 part of `bpf_sock_tuple`.
#[repr(C)]
struct TupleV6 {
    src: AddrV6,
    dst: AddrV6,
    src_port: BePort,
    dst_port: BePort,
}

impl Sockets for V4 {
    #[inline(always)]
    fn has_socket(skb: Skb, key: &MasqueradeKey<AddrV4>) -> bool {
        let mut tuple = TupleV4 {
            src: key.backend_addr,
            dst: key.masquerade_addr,
            src_port: key.backend_port,
            dst_port: key.masquerade_port,
        };
        has_socket(skb, key.protocol, &raw mut tuple)
    }
}

impl Sockets for V6 {
    #[inline(always)]
    fn has_socket(skb: Skb, key: &MasqueradeKey<AddrV6>) -> bool {
        let mut tuple = TupleV6 {
            src: key.backend_addr,
            dst: key.masquerade_addr,
            src_port: key.backend_port,
            dst_port: key.masquerade_port,
        };
        has_socket(skb, key.protocol, &raw mut tuple)
    }
}

#[inline(always)]
fn has_socket<T>(skb: Skb, protocol: Protocol, tuple: *mut T) -> bool {
    let context = skb.raw().cast();
    let tuple = tuple.cast::<bpf_sock_tuple>();
    let size = size_of::<T>() as u32;
    // SAFETY: valid context and tuple of the stated size; a socket that is
    // returned is released exactly once.
    unsafe {
        if protocol == Protocol::TCP {
            let socket: *mut bpf_sock = bpf_skc_lookup_tcp(context, tuple, size, CURRENT_NETNS, 0);
            if socket.is_null() {
                return false;
            }
            // A listener does not mind: the tuple it would accept is ours only
            // for packets from this backend's port.
            let listens = (*socket).state == TCP_LISTEN;
            bpf_sk_release(socket.cast());
            !listens
        } else if protocol != Protocol::UDP {
            // Programs cannot look up sockets of other protocols.
            false
        } else {
            let socket = bpf_sk_lookup_udp(context, tuple, size, CURRENT_NETNS, 0);
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
            true
        }
    }
}
