//! The kinds of frontends and what each asks of a flow.

use std::fmt;

use proxy_common::{
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::{BePort, Protocol},
};

/// An address and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DesiredFrontend<F: Family> {
    pub address: FrontendAddress<F>,
    pub port: u16,
    pub kind: FrontendKind,
    /// The traffic policy for this kind of frontend is Local.
    pub local_set: bool,
    /// Only the port's source ranges may use it (S58).
    pub restricted: bool,
    /// If restricted: so may its own address (S59).
    pub allow_itself: bool,
}

/// The address of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendAddress<F: Family> {
    Ip(F::Ip),
    /// Every address of this node that accepts NodePorts (S52).
    AnyNode,
}

/// The field of the Service that a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    ClusterIp,
    NodePort,
    /// One of spec.externalIPs.
    ExternalIp,
    /// One of status.loadBalancer.ingress.
    LoadBalancer,
}

impl<F: Family> DesiredFrontend<F> {
    /// A frontend with an address of its own that everyone may use.
    pub fn new(kind: FrontendKind, ip: F::Ip, port: u16) -> Self {
        Self {
            address: FrontendAddress::Ip(ip),
            port,
            kind,
            local_set: false,
            restricted: false,
            allow_itself: false,
        }
    }

    /// A NodePort.
    pub fn node_port(port: u16) -> Self {
        Self {
            address: FrontendAddress::AnyNode,
            port,
            kind: FrontendKind::NodePort,
            local_set: false,
            restricted: false,
            allow_itself: false,
        }
    }

    /// Its key in `FRONTENDS`.
    pub fn key(&self, protocol: Protocol) -> FrontendKey<F::Addr> {
        let port = BePort::new(self.port);
        match self.address {
            FrontendAddress::Ip(ip) => FrontendKey::new(F::addr(ip), port, protocol),
            FrontendAddress::AnyNode => FrontendKey::node_port(port, protocol),
        }
    }

    /// Its flags in `FRONTENDS`.
    pub fn flags(&self) -> u8 {
        let flag = |set, bit| if set { bit } else { 0 };
        flag(self.local_set, Frontend::LOCAL_SET)
            | flag(self.restricted, Frontend::SOURCE_RANGES)
            | flag(self.restricted && self.allow_itself, Frontend::ALLOW_ITSELF)
    }

    /// Some flows to it go to the cluster set. Traffic policy Local binds
    /// everyone who uses a cluster IP, but elsewhere not the pods and
    /// processes of this node (S39).
    pub fn uses_cluster_set(&self) -> bool {
        !self.local_set || self.kind != FrontendKind::ClusterIp
    }
}

impl FrontendKind {
    pub const ALL: [Self; 4] = [
        Self::ClusterIp,
        Self::NodePort,
        Self::ExternalIp,
        Self::LoadBalancer,
    ];

    /// Returns the value for this kind in `FRONTENDS`.
    pub const fn code(self) -> u8 {
        match self {
            Self::ClusterIp => Frontend::CLUSTER_IP,
            Self::NodePort => Frontend::NODE_PORT,
            Self::ExternalIp => Frontend::EXTERNAL_IP,
            Self::LoadBalancer => Frontend::LOAD_BALANCER,
        }
    }

    /// Returns the kind for a value in `FRONTENDS`.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Kubernetes' name of the kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
