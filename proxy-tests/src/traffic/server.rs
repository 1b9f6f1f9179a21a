//! A backend: TCP and UDP on one port.

use std::net::SocketAddr;

use anyhow::Result;

use super::{server_tcp::TcpServer, server_udp::UdpServer};
use crate::host::Host;

/// Answers on a port of a host until dropped, over TCP and UDP.
#[derive(Debug)]
pub struct Server {
    _tcp: Vec<TcpServer>,
    _udp: Vec<UdpServer>,
}

impl Server {
    /// Listens at every address of `host`; answers bear the host's name.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let addresses = host.addresses().list();
        let places: Vec<_> = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect();
        Self::start_at(host, &places)
    }

    /// Listens at these addresses of `host`.
    pub fn start_at(host: &Host, places: &[SocketAddr]) -> Result<Self> {
        let tcp = places.iter().map(|&place| TcpServer::start(host, place));
        let udp = places.iter().map(|&place| UdpServer::start(host, place));
        Ok(Self {
            _tcp: tcp.collect::<Result<_>>()?,
            _udp: udp.collect::<Result<_>>()?,
        })
    }

    /// One on each host.
    pub fn start_all<H: std::ops::Deref<Target = Host>>(
        hosts: &[H],
        port: u16,
    ) -> Result<Vec<Self>> {
        hosts.iter().map(|host| Self::start(host, port)).collect()
    }
}
