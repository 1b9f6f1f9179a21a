//! ICMP echo of either family.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Asks `target` for an echo and returns how long it took.
pub fn ping(target: IpAddr, patience: Duration) -> io::Result<Duration> {
    ping_with(b"tandem", target, patience)
}

/// Asks `target` for an echo of `payload` and returns how long it took.
pub fn ping_with(payload: &[u8], target: IpAddr, patience: Duration) -> io::Result<Duration> {
    let (domain, protocol, request, reply) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    // The kernel fills in identifier and checksum.
    let message = [&[request, 0, 0, 0, 0, 0, 0, 1], payload].concat();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(patience))?;

    let start = Instant::now();
    socket.send(&message)?;
    let mut answer = vec![0; message.len() + 64];
    let length = socket.recv(&mut answer)?;
    if answer[0] == reply && answer[8..length] == message[8..] {
        Ok(start.elapsed())
    } else {
        Err(io::Error::other("not an echo of the request"))
    }
}
