//! Routing table look-ups, and redirects by what they find.

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_redir_neigh},
    helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh},
};
use proxy_common::{
    family::{V4, V6},
    net::{AddrV4, AddrV6, Address as _},
};

use crate::{
    maps::tables::Tables,
    packet::{skb::Skb, verdict::Outcome},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Routing table look-ups, by family.
pub trait Route: Tables {
    /// Whether the kernel's look-up for a device takes none of a route's next hops
    /// on other devices.
    const KEEPS_TO_DEVICE: bool;

    /// Parameters of a look-up for a packet from `src` to `dst` that came in
    /// by device `ifindex`.
    fn route(src: &Self::Addr, dst: &Self::Addr, ifindex: u32) -> bpf_fib_lookup;

    /// Returns whether a look-up that succeeded found `dst` itself on the link, rather
    /// than a gateway to it.
    fn is_neighbour(route: &bpf_fib_lookup, dst: &Self::Addr) -> bool;

    /// The source address that a look-up with `BPF_FIB_LOOKUP_SRC` found.
    fn source(route: &bpf_fib_lookup) -> Self::Addr;

    /// Returns whether both are addresses of one subnet, of which the kernel may choose
    /// either as source. Of IPv4 addresses it chooses the one that was assigned
    /// first.
    fn are_of_one_subnet(one: &Self::Addr, other: &Self::Addr) -> bool;
}

impl Route for V4 {
    const KEEPS_TO_DEVICE: bool = true;

    #[inline(always)]
    fn route(src: &AddrV4, dst: &AddrV4, ifindex: u32) -> bpf_fib_lookup {
        // SAFETY: plain integers; zero is a valid value of each.
        let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        route.family = AF_INET;
        route.ifindex = ifindex;
        route.__bindgen_anon_3.ipv4_src = src.word(0);
        route.__bindgen_anon_4.ipv4_dst = dst.word(0);
        route
    }

    #[inline(always)]
    fn is_neighbour(route: &bpf_fib_lookup, dst: &AddrV4) -> bool {
        // SAFETY: plain integers. The kernel puts a gateway's address here, of
        // the family that it says.
        route.family == AF_INET && unsafe { route.__bindgen_anon_4.ipv4_dst } == dst.word(0)
    }

    #[inline(always)]
    fn source(route: &bpf_fib_lookup) -> AddrV4 {
        // SAFETY: plain integers, where the kernel puts the source.
        let octets = unsafe { route.__bindgen_anon_3.ipv4_src }.to_ne_bytes();
        AddrV4 { octets }
    }

    #[inline(always)]
    fn are_of_one_subnet(_one: &AddrV4, _other: &AddrV4) -> bool {
        false
    }
}

impl Route for V6 {
    const KEEPS_TO_DEVICE: bool = false;

    #[inline(always)]
    fn route(src: &AddrV6, dst: &AddrV6, ifindex: u32) -> bpf_fib_lookup {
        // SAFETY: plain integers; zero is a valid value of each.
        let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        route.family = AF_INET6;
        route.ifindex = ifindex;
        route.__bindgen_anon_3.ipv6_src = [src.word(0), src.word(1), src.word(2), src.word(3)];
        route.__bindgen_anon_4.ipv6_dst = [dst.word(0), dst.word(1), dst.word(2), dst.word(3)];
        route
    }

    #[inline(always)]
    fn is_neighbour(route: &bpf_fib_lookup, dst: &AddrV6) -> bool {
        // SAFETY: plain integers, where the kernel puts a gateway's address.
        let next = unsafe { route.__bindgen_anon_4.ipv6_dst };
        let mut difference = 0;
        let mut index = 0;
        while index < AddrV6::WORDS {
            difference |= next[index] ^ dst.word(index);
            index += 1;
        }
        difference == 0
    }

    #[inline(always)]
    fn source(route: &bpf_fib_lookup) -> AddrV6 {
        // SAFETY: plain integers, where the kernel puts the source; as many
        // bytes.
        let octets =
            unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(route.__bindgen_anon_3.ipv6_src) };
        AddrV6 { octets }
    }

    #[inline(always)]
    fn are_of_one_subnet(one: &AddrV6, other: &AddrV6) -> bool {
        (one.word(0) ^ other.word(0)) | (one.word(1) ^ other.word(1)) == 0
    }
}

/// Looks a route up; returns one of `BPF_FIB_LKUP_RET_*`, or an error as a large
/// number.
#[inline(always)]
pub fn look_up(skb: &Skb, route: &mut bpf_fib_lookup, flags: u32) -> u32 {
    // SAFETY: valid context and parameters of the stated size.
    unsafe {
        fib_lookup(
            skb.raw().cast(),
            route,
            size_of::<bpf_fib_lookup>() as i32,
            flags,
        ) as u32
    }
}

/// Sends the packet to `dst` by the route that a look-up found. The kernel looks
/// it up once more, and of several IPv6 next hops could take one that is not on
/// this device, so a gateway is handed over then. Not where there is none: a
/// packet that waits for its neighbour would leave by the route it has had so
/// far, which the kernel's own look-up replaces.
#[inline(always)]
pub fn redirect<F: Route>(route: &bpf_fib_lookup, dst: &F::Addr) -> Outcome {
    // SAFETY: plain integers; zero is a valid value of each.
    let mut next_hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    let (params, length) = if F::KEEPS_TO_DEVICE || F::is_neighbour(route, dst) {
        (core::ptr::null_mut(), 0)
    } else {
        next_hop.nh_family = u32::from(route.family);
        // SAFETY: plain integers, which the look-up wrote.
        unsafe { next_hop.__bindgen_anon_1.ipv6_nh = route.__bindgen_anon_4.ipv6_dst };
        (&raw mut next_hop, size_of::<bpf_redir_neigh>() as i32)
    };
    // SAFETY: no parameters, or those of the stated size.
    Outcome::redirect(unsafe { bpf_redirect_neigh(route.ifindex, params, length, 0) })
}
