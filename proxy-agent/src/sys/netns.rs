//! The network namespace of this process.

use std::{net::UdpSocket, os::fd::AsRawFd as _};

/// `SO_NETNS_COOKIE` of this process: names its network namespace (Linux 5.14;
/// 0 before).
pub fn cookie() -> u64 {
    let Ok(socket) = UdpSocket::bind(("::", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0))) else {
        return 0;
    };
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: a valid socket, and a buffer of the length that is stated.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { cookie } else { 0 }
}
