//! Socket options, and what is done like them, that the standard library has no
//! name for.

use std::{io, net::UdpSocket, os::fd::AsRawFd};

use libc::{
    IP_MTU, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_RECVERR, IPPROTO_IP, IPPROTO_IPV6, IPV6_MTU,
    IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO, IPV6_RECVERR, SO_NO_CHECK, SO_RCVBUFFORCE, SOL_SOCKET,
    SOL_UDP, UDP_SEGMENT, c_int, c_void, socklen_t,
};

/// All options here are ints.
#[expect(clippy::cast_possible_truncation, reason = "four fits")]
const INT_LENGTH: socklen_t = size_of::<c_int>() as socklen_t;

/// Room for what comes while a busy machine has no time for the receiver.
const RECEIVE_BUFFER: c_int = 4 << 20;

/// Makes room for bursts, whatever `net.core.rmem_max` allows.
pub(super) fn receive_much(socket: &UdpSocket) -> io::Result<()> {
    set(socket, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
}

pub(super) fn no_checksum(socket: &UdpSocket) -> io::Result<()> {
    set(socket, SOL_SOCKET, SO_NO_CHECK, 1)
}

pub(super) fn segment(socket: &UdpSocket, size: u16) -> io::Result<()> {
    set(socket, SOL_UDP, UDP_SEGMENT, size.into())
}

pub(super) fn discover_path_mtu(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        set(socket, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    } else {
        set(socket, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
    }
}

pub(super) fn receive_errors(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        set(socket, IPPROTO_IP, IP_RECVERR, 1)
    } else {
        set(socket, IPPROTO_IPV6, IPV6_RECVERR, 1)
    }
}

pub(super) fn path_mtu(socket: &UdpSocket) -> io::Result<u32> {
    let (level, option) = if socket.local_addr()?.is_ipv4() {
        (IPPROTO_IP, IP_MTU)
    } else {
        (IPPROTO_IPV6, IPV6_MTU)
    };
    let mut value: c_int = 0;
    let mut length = INT_LENGTH;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which both
    // outlive the call.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw mut value).cast::<c_void>(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(value).map_err(io::Error::other)
}

/// Ends what the socket is connected to. Of TCP that is a reset, also if a child
/// process that is about to start still holds the socket: closing it with
/// `SO_LINGER` 0 would then do nothing.
pub(super) fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: plain integers; zero is a valid value of each, `AF_UNSPEC` too.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "sixteen fits")]
    let length = size_of::<libc::sockaddr>() as socklen_t;
    // SAFETY: the kernel reads `length` bytes of `nowhere`, which outlives the
    // call.
    let outcome = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set(socket: &UdpSocket, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int's bytes from `value`, which outlives the
    // call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast::<c_void>(),
            INT_LENGTH,
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
