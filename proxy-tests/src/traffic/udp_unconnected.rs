//! UDP clients that name whom they send to with each datagram.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use super::{Answer, PATIENCE, server_udp::LARGEST};
use crate::{addressing::unspecified, family::Family};

/// An unconnected UDP socket.
#[derive(Debug)]
pub struct UdpTalker {
    socket: UdpSocket,
}

impl UdpTalker {
    /// A socket of one family. An IPv6 one can talk to mapped addresses too.
    pub fn new(family: Family) -> io::Result<Self> {
        Self::bound((unspecified(family), 0).into())
    }

    /// A socket that has this address.
    pub fn bound(own: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// A socket that is not connected, or no longer.
    pub(super) fn of(socket: UdpSocket) -> Self {
        Self { socket }
    }

    /// Waits this long for answers.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))
    }

    /// Sends one datagram.
    pub fn send(&self, target: SocketAddr, payload: &[u8]) -> io::Result<()> {
        self.socket.send_to(payload, target).map(drop)
    }

    /// Receives one answer, and whom it comes from.
    pub fn receive(&self) -> io::Result<(Answer, SocketAddr)> {
        let mut buffer = vec![0; LARGEST];
        let (length, source) = self.socket.recv_from(&mut buffer)?;
        let line = buffer[..length].split(|&byte| byte == b'\n').next();
        Ok((Answer::parse(line.unwrap_or_default())?, source))
    }

    /// Sends one datagram and waits for its answer.
    pub fn ask(&self, target: SocketAddr) -> io::Result<(Answer, SocketAddr)> {
        self.send(target, b"question")?;
        self.receive()
    }

    /// The client's end, as `getsockname` gives it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
