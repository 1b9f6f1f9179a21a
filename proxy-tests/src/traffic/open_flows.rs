//! A TCP connection and a UDP socket that talk to one frontend for a while.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Connection, PATIENCE, TcpClient, UdpClient};
use crate::{eventually, host::Host};

/// From a question to its answer, where there is one.
const BRIEFLY: Duration = Duration::from_millis(300);

/// Flows that have had answers in both directions.
#[derive(Debug)]
pub struct OpenFlows {
    connection: Connection,
    socket: UdpClient,
    /// Name of the server that the connection is with.
    pub over_tcp: String,
    /// Name of the server that first answered the socket.
    pub over_udp: String,
}

impl OpenFlows {
    /// Opens both from `client`.
    pub fn start(client: &Host, target: SocketAddr) -> Result<Self> {
        client.run(|| {
            let mut connection = TcpClient::to(target).connect().context("TCP")?;
            connection.start_echo()?;
            connection.echo(b"first")?;
            let socket = UdpClient::connect(target)?;
            let over_udp = socket.ask(b"first").context("UDP")?.server;
            Ok(Self {
                over_tcp: connection.answer.server.clone(),
                over_udp,
                connection,
                socket,
            })
        })
    }

    /// Checks that the connection still works.
    pub fn tcp(&mut self) -> Result<()> {
        self.connection.echo(b"still there?").context("TCP")
    }

    /// Returns the name of the server that answers the socket now.
    pub fn udp(&self) -> Result<String> {
        let answer = self.socket.ask(b"still there?");
        Ok(answer.context("UDP")?.server)
    }

    /// Waits until nobody answers the socket any more.
    pub fn udp_ends(&self) -> Result<()> {
        self.socket.set_patience(BRIEFLY)?;
        eventually("UDP ends", PATIENCE, || {
            let answer = self.socket.ask(b"still there?");
            ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })
    }

    /// Both are where they were.
    pub fn stay(&mut self) -> Result<()> {
        self.tcp()?;
        let server = self.udp()?;
        ensure!(
            server == self.over_udp,
            "UDP went from {} to {server}",
            self.over_udp
        );
        Ok(())
    }
}
