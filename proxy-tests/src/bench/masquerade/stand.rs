//! The lab that masquerading is measured in.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
};

use anyhow::Result;

use crate::{
    Agent, AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Pod, Service, Topology,
    addressing::{lan, subnet_length},
    traffic::{ByteServer, Sources},
};

const NODE_PORT: u16 = 30_080;
/// Numbers of the client's addresses on the LAN: so many that at ten thousand
/// connections a second none meets one of the client's own in `TIME_WAIT`.
const CLIENTS: std::ops::Range<u8> = 200..220;

/// The proxy that translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Tandem,
    Netfilter,
}

impl fmt::Display for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tandem => "Tandem",
            Self::Netfilter => "netfilter",
        })
    }
}

/// Two nodes, a client outside that connects to the first one, and a backend on the second.
#[derive(Debug)]
pub struct Stand {
    _server: ByteServer,
    backend: Pod,
    lab: Lab,
}

impl Stand {
    /// Builds it. Nobody translates yet.
    pub fn build() -> Result<Self> {
        let lab = Lab::start(Topology::ROUTED)?;
        let backend = lab.nodes[1].add_pod("backend")?;
        let server = ByteServer::start(&backend, ECHO_TARGET)?;
        let mut batch = String::new();
        for family in Family::BOTH {
            for number in CLIENTS {
                writeln!(
                    batch,
                    "addr add {}/{} dev eth0 nodad",
                    lan(family, 0, number),
                    subnet_length(family)
                )?;
            }
        }
        lab.external.ip(&batch)?;
        Ok(Self {
            _server: server,
            backend,
            lab,
        })
    }

    /// Does `work` while `proxy` translates.
    pub fn with<T>(&self, proxy: Proxy, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        match proxy {
            Proxy::Tandem => {
                let service = Service::echo(self.lab.families())
                    .endpoint(&self.backend)
                    .node_port(ECHO_PORT, NODE_PORT);
                self.lab.manifests.write(&service)?;
                let options = AgentOptions::for_many_flows();
                let agent = Agent::start(&self.lab.nodes[0], &self.lab, &options)?;
                agent.wait_ready()?;
                work(self)
            }
            Proxy::Netfilter => {
                for family in Family::BOTH {
                    self.lab.nodes[0].nft(&self.rules(family))?;
                }
                work(self)
            }
        }
    }

    /// The client, outside the cluster.
    pub fn client(&self) -> &Host {
        &self.lab.external
    }

    /// Destination address.
    pub fn target(&self, family: Family) -> SocketAddr {
        self.lab.nodes[0].at(family, NODE_PORT)
    }

    /// Its addresses and ports.
    pub fn sources(&self, family: Family) -> Sources {
        Sources::of(CLIENTS.map(|number| lan(family, 0, number)).collect())
    }

    fn rules(&self, family: Family) -> String {
        let ip = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let backend = self.backend.at(family, ECHO_TARGET);
        let node = self.lab.nodes[0].address(family);
        format!(
            "table {ip} proxy {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    {ip} daddr {node} meta l4proto {{ tcp, udp }} th dport {NODE_PORT} dnat to {backend}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat masquerade fully-random
  }}
}}
"
        )
    }
}
