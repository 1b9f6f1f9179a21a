//! Traffic of one client, one operation after the other.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    Family,
    traffic::{TcpClient, UdpClient, UdpTalker, ask_tcp},
};

/// Bytes of one operation of a stream.
const CHUNK: usize = 64 << 20;

#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// A byte there and back in one connection.
    Exchange,
    /// A new connection, which the client closes once the server has greeted it.
    Connect,
    /// 64 MiB to the client in one connection.
    Stream,
    /// A datagram there and back, by a connected socket.
    Datagram,
    /// A datagram there and back, each with the address.
    Unconnected,
}

impl Load {
    pub(super) const ALL: [Self; 5] = [
        Self::Exchange,
        Self::Connect,
        Self::Stream,
        Self::Datagram,
        Self::Unconnected,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exchange => "TCP request and response",
            Self::Connect => "TCP connection",
            Self::Stream => "TCP stream of 64 MiB",
            Self::Datagram => "UDP request and response",
            Self::Unconnected => "UDP, unconnected socket",
        }
    }

    /// Runs it for a time; returns the number of operations.
    pub(super) fn run(self, target: SocketAddr, time: Duration) -> io::Result<u64> {
        match self {
            Self::Exchange => {
                let mut connection = TcpClient::to(target).connect()?;
                connection.start_echo()?;
                repeat(time, || connection.echo(b"x"))
            }
            Self::Connect => repeat(time, || ask_tcp(target).map(drop)),
            Self::Stream => repeat(time, || TcpClient::to(target).connect()?.download(CHUNK)),
            Self::Datagram => {
                let client = UdpClient::connect(target)?;
                repeat(time, || client.ask(b"question").map(drop))
            }
            Self::Unconnected => {
                let client = UdpTalker::new(Family::of(target.ip()))?;
                repeat(time, || client.ask(target).map(drop))
            }
        }
    }
}

fn repeat(time: Duration, mut operation: impl FnMut() -> io::Result<()>) -> io::Result<u64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        operation()?;
        count += 1;
    }
    Ok(count)
}
