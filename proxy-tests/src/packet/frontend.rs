//! Frontends besides a cluster IP.

use std::net::{IpAddr, SocketAddr};

use proxy_agent::select::FrontendKind;

/// A frontend of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub kind: FrontendKind,
    /// `None` for all of this node's addresses that take NodePorts.
    pub ip: Option<IpAddr>,
    pub port: u16,
    /// externalTrafficPolicy: Local.
    pub local: bool,
    /// The port's source ranges count here.
    pub restricted: bool,
    /// If restricted: its own address may use it, too.
    pub allow_itself: bool,
}

impl Frontend {
    pub fn node_port(port: u16) -> Self {
        Self {
            kind: FrontendKind::NodePort,
            ip: None,
            port,
            local: false,
            restricted: false,
            allow_itself: false,
        }
    }

    pub fn external_ip(address: SocketAddr) -> Self {
        Self {
            kind: FrontendKind::ExternalIp,
            ip: Some(address.ip()),
            ..Self::node_port(address.port())
        }
    }

    pub fn load_balancer(address: SocketAddr) -> Self {
        Self {
            kind: FrontendKind::LoadBalancer,
            ..Self::external_ip(address)
        }
    }

    /// With externalTrafficPolicy: Local.
    #[must_use]
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// For the clients in the port's source ranges only.
    #[must_use]
    pub fn restricted(mut self) -> Self {
        self.restricted = true;
        self
    }

    /// For those clients and for its own address.
    #[must_use]
    pub fn restricted_but_for_itself(mut self) -> Self {
        self.restricted = true;
        self.allow_itself = true;
        self
    }
}
