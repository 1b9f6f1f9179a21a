//! UDP clients.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Result;
use socket2::SockRef;

use super::{
    Answer, PATIENCE, UdpTalker,
    path_error::{self, PathError},
    server_udp::LARGEST,
    socket_option,
};
use crate::{addressing::unspecified, eventually, family::Family};

/// A connected UDP socket.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// Connects to `target` from wherever the kernel likes.
    pub fn connect(target: SocketAddr) -> io::Result<Self> {
        let any = SocketAddr::new(unspecified(Family::of(target.ip())), 0);
        Self::connect_from(any, target)
    }

    /// Connects from this address and port, which other sockets may use too.
    pub fn connect_from(source: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(target),
            socket2::Type::DGRAM,
            None,
        )?;
        // With a port chosen by the kernel this would let it choose one that
        // another client uses.
        socket.set_reuse_address(source.port() != 0)?;
        socket.bind(&source.into())?;
        socket.connect(&target.into())?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Connects the same socket to something else.
    pub fn connect_again(&self, target: SocketAddr) -> io::Result<()> {
        self.socket.connect(target)
    }

    /// Makes the socket an unconnected one (`connect` with `AF_UNSPEC`), which
    /// sends with addresses from then on.
    pub fn disconnect(self) -> io::Result<UdpTalker> {
        socket_option::disconnect(&self.socket)?;
        Ok(UdpTalker::of(self.socket))
    }

    /// Waits this long for answers.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))
    }

    /// Makes room for answers that come while nobody receives.
    pub fn receive_much(&self) -> io::Result<()> {
        socket_option::receive_much(&self.socket)
    }

    /// Sends without checksum (`SO_NO_CHECK`; IPv4 only).
    pub fn send_without_checksum(&self) -> io::Result<()> {
        socket_option::no_checksum(&self.socket)
    }

    /// Lets the kernel cut what is sent into datagrams of `size` bytes
    /// (`UDP_SEGMENT`).
    pub fn send_segments(&self, size: u16) -> io::Result<()> {
        socket_option::segment(&self.socket, size)
    }

    /// Never fragments: too large a datagram is refused with `EMSGSIZE`.
    pub fn do_not_fragment(&self) -> io::Result<()> {
        socket_option::discover_path_mtu(&self.socket)
    }

    /// The path MTU the kernel knows.
    pub fn path_mtu(&self) -> io::Result<u32> {
        socket_option::path_mtu(&self.socket)
    }

    /// Keeps ICMP errors for [`UdpClient::path_error`].
    pub fn keep_errors(&self) -> io::Result<()> {
        socket_option::receive_errors(&self.socket)
    }

    /// Packets live this many hops.
    pub fn set_hop_limit(&self, hops: u32) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        if self.socket.local_addr()?.is_ipv4() {
            socket.set_ttl_v4(hops)
        } else {
            socket.set_unicast_hops_v6(hops)
        }
    }

    /// The next ICMP error about what was sent; waits for it.
    pub fn path_error(&self) -> io::Result<PathError> {
        path_error::next(&self.socket, PATIENCE)
    }

    /// Sends one datagram.
    pub fn send(&self, payload: &[u8]) -> io::Result<()> {
        self.socket.send(payload).map(drop)
    }

    /// Receives one answer: who sent it, and what was echoed.
    pub fn receive(&self) -> io::Result<(Answer, Vec<u8>)> {
        let mut buffer = vec![0; LARGEST];
        let length = self.socket.recv(&mut buffer)?;
        let end = buffer[..length].iter().position(|&byte| byte == b'\n');
        let end = end.ok_or_else(|| io::Error::other("an answer without its line"))?;
        Ok((
            Answer::parse(&buffer[..end])?,
            buffer[end + 1..length].to_vec(),
        ))
    }

    /// Sends `payload` and waits for its echo.
    pub fn ask(&self, payload: &[u8]) -> io::Result<Answer> {
        self.send(payload)?;
        loop {
            let (answer, echo) = self.receive()?;
            // A late answer to an earlier question is not this one's.
            if echo == payload {
                return Ok(answer);
            }
        }
    }

    /// [`UdpClient::ask`], again and again while the answer is not there. Over a
    /// path narrower than its ends a datagram is lost each way to learn of it.
    pub fn ask_patiently(&self, payload: &[u8]) -> Result<Answer> {
        self.set_patience(Duration::from_millis(100))?;
        let answer = eventually("UDP answer", PATIENCE, || Ok(self.ask(payload)?))?;
        self.set_patience(PATIENCE)?;
        Ok(answer)
    }

    /// The client's end, as `getsockname` gives it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The server's end, as `getpeername` gives it.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }
}

/// Sends one datagram of `length` bytes from a new socket and returns what
/// the server said.
pub fn ask_udp(target: SocketAddr, length: usize) -> io::Result<Answer> {
    UdpClient::connect(target)?.ask(&payload(length))
}

/// [`ask_udp`], patiently.
pub fn ask_udp_patiently(target: SocketAddr, length: usize) -> Result<Answer> {
    UdpClient::connect(target)?.ask_patiently(&payload(length))
}

/// Asks from `count` new sockets and counts the answers of each server.
pub fn spread_udp(target: SocketAddr, count: usize) -> io::Result<BTreeMap<String, usize>> {
    let mut servers = BTreeMap::new();
    for _ in 0..count {
        *servers.entry(ask_udp(target, 32)?.server).or_default() += 1;
    }
    Ok(servers)
}

/// Bytes that differ from one another, so that swapped fragments show.
fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index % 251).to_le_bytes()[0])
        .collect()
}
