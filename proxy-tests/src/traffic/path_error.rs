//! ICMP errors as an application sees them: the kernel hands them to the
//! socket whose addresses the quoted packet bears, so an error that arrives
//! has been translated.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

/// An ICMP error of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathError {
    /// The ICMP type: time exceeded is 11 in IPv4 and 3 in IPv6.
    pub kind: u8,
    pub code: u8,
    /// A value that the error carries, such as the MTU.
    pub info: u32,
    /// The address that sent it.
    pub offender: IpAddr,
    /// The destination of the quoted packet.
    pub destination: SocketAddr,
}

/// The next error in the queue of `socket`; waits for it.
pub(super) fn next(socket: &UdpSocket, patience: Duration) -> io::Result<PathError> {
    let deadline = Instant::now() + patience;
    loop {
        match take(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                thread::sleep(Duration::from_millis(2));
            }
            outcome => return outcome,
        }
    }
}

fn take(socket: &UdpSocket) -> io::Result<PathError> {
    let mut quoted = [0; 2048];
    let mut slices = [IoSliceMut::new(&mut quoted)];
    // Either option yields a sock_extended_err and the offender's address.
    let mut control = nix::cmsg_space!([u8; 128]);
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    )?;
    let destination = message.address.and_then(|address| {
        let v4 = address
            .as_sockaddr_in()
            .map(|&v4| SocketAddrV4::from(v4).into());
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|&v6| SocketAddrV6::from(v6).into())
        })
    });
    let destination = destination.ok_or_else(|| io::Error::other("an error about nothing"))?;
    for control in message.cmsgs()? {
        let (error, offender) = match control {
            ControlMessageOwned::Ipv4RecvErr(error, Some(offender)) => {
                let address = Ipv4Addr::from(u32::from_be(offender.sin_addr.s_addr));
                (error, IpAddr::V4(address))
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(offender)) => (
                error,
                IpAddr::V6(Ipv6Addr::from(offender.sin6_addr.s6_addr)),
            ),
            _ => continue,
        };
        return Ok(PathError {
            kind: error.ee_type,
            code: error.ee_code,
            info: error.ee_info,
            offender,
            destination,
        });
    }
    Err(io::Error::other("an error without its description"))
}
