//! Addresses of calls: where they stand in the context, and their one form for
//! both families.

use aya_ebpf::{EbpfContext as _, programs::SockAddrContext};
use proxy_common::{
    family::{V4, V6},
    net::{AddrV4, AddrV6, Address as _, BePort, Protocol},
};

use crate::lookup::listener::Bound;

/// The socket's protocol.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> Protocol {
    // SAFETY: the program's own context; a field that all these calls have.
    Protocol(unsafe { (*ctx.sock_addr).protocol } as u8)
}

/// The context as helpers take it.
#[inline(always)]
pub fn raw(ctx: &SockAddrContext) -> *mut core::ffi::c_void {
    ctx.as_ptr()
}

/// A call's address, in the context of one of its two kinds of programs.
pub trait Call {
    /// Address and port; IPv4 in the mapped form.
    fn read(ctx: &SockAddrContext) -> (AddrV6, BePort);

    /// Replaces them by others of the same family.
    fn write(ctx: &SockAddrContext, addr: &AddrV6, port: BePort);
}

/// Programs for `struct sockaddr_in`.
pub struct CallV4;

/// Programs for `struct sockaddr_in6`. The addresses may be mapped ones of
/// IPv4 (E14).
pub struct CallV6;

impl Call for CallV4 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> (AddrV6, BePort) {
        // SAFETY: the program's own context. Volatile, because the verifier
        // wants each field read on its own.
        let addr = unsafe { (&raw const (*ctx.sock_addr).user_ip4).read_volatile() };
        let addr = AddrV4 {
            octets: addr.to_ne_bytes(),
        };
        (addr.mapped(), read_port(ctx))
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: &AddrV6, port: BePort) {
        // SAFETY: as above.
        unsafe { (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(addr.word(3)) };
        write_port(ctx, port);
    }
}

impl Call for CallV6 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> (AddrV6, BePort) {
        // SAFETY: as above.
        let words = unsafe {
            let words = (&raw const (*ctx.sock_addr).user_ip6).cast::<u32>();
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ]
        };
        (from_words(words), read_port(ctx))
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: &AddrV6, port: BePort) {
        // SAFETY: as above.
        unsafe {
            let words = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
            words.write_volatile(addr.word(0));
            words.add(1).write_volatile(addr.word(1));
            words.add(2).write_volatile(addr.word(2));
            words.add(3).write_volatile(addr.word(3));
        }
        write_port(ctx, port);
    }
}

/// The address in these words, as the kernel has them.
#[inline(always)]
fn from_words(words: [u32; 4]) -> AddrV6 {
    // SAFETY: both are sixteen plain bytes.
    let octets = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) };
    AddrV6 { octets }
}

#[inline(always)]
fn read_port(ctx: &SockAddrContext) -> BePort {
    // SAFETY: as above; the field is wider than a port.
    let port = unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() };
    BePort::from_bits(port as u16)
}

#[inline(always)]
fn write_port(ctx: &SockAddrContext, port: BePort) {
    // SAFETY: as above.
    unsafe { (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(port.to_bits())) };
}

/// The kernel's name for connected, of UDP too.
const TCP_ESTABLISHED: u32 = 1;

/// Returns whether the socket is connected. One that is has an address, whether it was
/// bound or not.
#[inline(always)]
pub fn is_connected(ctx: &SockAddrContext) -> bool {
    // SAFETY: as in `is_connected_to`.
    let state = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (&raw const (*socket).state).read_volatile()
    };
    state == TCP_ESTABLISHED
}

/// Returns whether a TCP socket that is to be connected has a port already. Others may
/// have the same, and no two of them may get one backend, which packets see to.
#[inline(always)]
pub fn has_port(ctx: &SockAddrContext) -> bool {
    // SAFETY: as in `is_connected_to`.
    let (protocol, port) = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (
            (&raw const (*socket).protocol).read_volatile(),
            (&raw const (*socket).src_port).read_volatile(),
        )
    };
    protocol == u32::from(Protocol::TCP.0) && port != 0
}

/// Returns whether the socket is connected to this address now, as the kernel has it;
/// IPv4 in the mapped form. Sends of an IPv6 socket that is connected to a mapped
/// address come to the programs as if that address had been given.
#[inline(always)]
pub fn is_connected_to(ctx: &SockAddrContext, addr: &AddrV6, port: BePort) -> bool {
    // SAFETY: the context has its socket. Volatile and all of them, because the
    // verifier wants each field read on its own and by no computed pointer.
    let (state, dst_port, v4, v6) = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        let words = (&raw const (*socket).dst_ip6).cast::<u32>();
        (
            (&raw const (*socket).state).read_volatile(),
            (&raw const (*socket).dst_port).read_volatile(),
            (&raw const (*socket).dst_ip4).read_volatile(),
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ],
        )
    };
    let is_same_v4 = v4 == addr.word(3);
    let is_same_v6 = (v6[0] ^ addr.word(0))
        | (v6[1] ^ addr.word(1))
        | (v6[2] ^ addr.word(2))
        | (v6[3] ^ addr.word(3))
        == 0;
    let is_same = if addr.unmapped().is_some() {
        is_same_v4
    } else {
        is_same_v6
    };
    state == TCP_ESTABLISHED && dst_port == port.to_bits() && is_same
}

/// Returns whether the socket sends by one device only (`SO_BINDTODEVICE`, a VRF).
#[inline(always)]
pub fn is_bound_to_device(ctx: &SockAddrContext) -> bool {
    // SAFETY: as in `is_connected_to`.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (&raw const (*socket).bound_dev_if).read_volatile() != 0
    }
}

/// A family whose addresses have the form of `SOCKETS`.
pub trait Wide: Bound {
    /// The address as `SOCKETS` has it.
    fn wide(addr: &Self::Addr) -> AddrV6;

    /// Of the loopback; so is the unspecified address for those who connect to it.
    fn is_loopback(addr: &Self::Addr) -> bool;

    /// The loopback address that is meant by an address of the loopback.
    const LOOPBACK: Self::Addr;

    /// The source address that the socket is bound to; zero if to none.
    fn bound_to(ctx: &SockAddrContext) -> Self::Addr;
}

impl Wide for V4 {
    const LOOPBACK: AddrV4 = AddrV4 {
        octets: [127, 0, 0, 1],
    };

    #[inline(always)]
    fn wide(addr: &AddrV4) -> AddrV6 {
        addr.mapped()
    }

    #[inline(always)]
    fn is_loopback(addr: &AddrV4) -> bool {
        addr.octets[0] == 127 || addr.is_zero()
    }

    #[inline(always)]
    fn bound_to(ctx: &SockAddrContext) -> AddrV4 {
        // SAFETY: as in `is_connected_to`.
        let addr = unsafe {
            let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
            (&raw const (*socket).src_ip4).read_volatile()
        };
        AddrV4 {
            octets: addr.to_ne_bytes(),
        }
    }
}

impl Wide for V6 {
    const LOOPBACK: AddrV6 = AddrV6 {
        octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    };

    #[inline(always)]
    fn wide(addr: &AddrV6) -> AddrV6 {
        *addr
    }

    #[inline(always)]
    fn is_loopback(addr: &AddrV6) -> bool {
        *addr == Self::LOOPBACK || addr.is_zero()
    }

    #[inline(always)]
    fn bound_to(ctx: &SockAddrContext) -> AddrV6 {
        // SAFETY: as in `is_connected_to`.
        let words = unsafe {
            let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
            let words = (&raw const (*socket).src_ip6).cast::<u32>();
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ]
        };
        from_words(words)
    }
}
