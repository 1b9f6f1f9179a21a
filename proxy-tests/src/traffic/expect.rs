//! Checks of what a client hears.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{Answer, TcpClient, UdpClient, ask_tcp, ask_udp, ask_udp_patiently};

/// Time to wait for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// Connections, transfers, datagrams, and one in fragments are answered.
pub fn expect_everything(target: SocketAddr) -> Result<()> {
    let connect = || TcpClient::to(target).connect();
    ask_tcp(target).context("TCP")?;
    connect()?.upload(1 << 20).context("upload")?;
    connect()?.download(1 << 20).context("download")?;
    ask_udp(target, 64).context("UDP")?;
    ask_udp_patiently(target, 2000).context("fragments")?;
    Ok(())
}

/// Nothing comes back, neither over TCP nor over UDP.
pub fn expect_silence(target: SocketAddr) -> Result<()> {
    match TcpClient::to(target).within(SILENCE).connect() {
        Err(error) if error.kind() == ErrorKind::TimedOut => {}
        other => bail!("TCP {target}: {other:?}"),
    }
    let socket = UdpClient::connect(target)?;
    socket.set_patience(SILENCE)?;
    match socket.ask(b"anybody?") {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        other => bail!("UDP {target}: {other:?}"),
    }
}

/// Both are refused.
pub fn expect_refusal(target: SocketAddr) -> Result<()> {
    let refused = |outcome: io::Result<Answer>| match outcome {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("{target}: {other:?}"),
    };
    refused(ask_tcp(target))?;
    refused(ask_udp(target, 16))
}
