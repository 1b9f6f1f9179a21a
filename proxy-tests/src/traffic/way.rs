//! Every way for a process to reach a server, and to be told whom it talks to.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{Answer, TcpClient, UdpClient, UdpTalker};
use crate::family::Family;

/// The ways in which a process reaches a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Tcp,
    ConnectedUdp,
    UnconnectedUdp,
    /// The same from IPv6 sockets to IPv4 addresses.
    MappedTcp,
    MappedConnectedUdp,
    MappedUnconnectedUdp,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 6] = [
        Self::Tcp,
        Self::ConnectedUdp,
        Self::UnconnectedUdp,
        Self::MappedTcp,
        Self::MappedConnectedUdp,
        Self::MappedUnconnectedUdp,
    ];

    /// Returns whether addresses of this family can be reached so.
    pub fn fits(self, family: Family) -> bool {
        family == Family::V4 || !self.is_mapped()
    }

    /// Asks `target` and returns the answer, with the client's own end. Panics if
    /// the client is told that it talks to somebody else, or if it gets two
    /// answers of two servers.
    pub fn ask(self, target: SocketAddr) -> Result<(Answer, SocketAddr)> {
        let target = if self.is_mapped() {
            mapped(target)
        } else {
            target
        };
        let (answer, own, peer) = match self {
            Self::Tcp | Self::MappedTcp => {
                let mut connection = TcpClient::to(target).connect()?;
                connection.start_echo()?;
                connection.echo(b"again")?;
                let (own, peer) = (connection.local_addr()?, connection.peer_addr()?);
                (connection.answer, own, peer)
            }
            Self::ConnectedUdp | Self::MappedConnectedUdp => {
                let socket = UdpClient::connect(target)?;
                let answer = socket.ask(b"question")?;
                assert_eq!(socket.ask(b"another")?.server, answer.server);
                (answer, socket.local_addr()?, socket.peer_addr()?)
            }
            Self::UnconnectedUdp | Self::MappedUnconnectedUdp => {
                let socket = UdpTalker::new(Family::of(target.ip()))?;
                let (answer, source) = socket.ask(target)?;
                assert_eq!(socket.ask(target)?.0.server, answer.server);
                (answer, socket.local_addr()?, source)
            }
        };
        assert_eq!(peer, target, "{self:?}");
        Ok((answer, own))
    }

    fn is_mapped(self) -> bool {
        matches!(
            self,
            Self::MappedTcp | Self::MappedConnectedUdp | Self::MappedUnconnectedUdp
        )
    }
}

/// The address as an IPv6 socket names it.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}
