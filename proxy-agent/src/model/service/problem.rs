//! Problems of Services.

use proxy_common::net::Protocol;

use crate::model::{AddressProblem, IpFamily};

/// A reason why part of a Service is not served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ServiceProblem {
    #[error("name {0:?} does not fit into the tables (63 bytes), it is not served")]
    Name(String),
    #[error("clusterIP {0}")]
    ClusterIp(AddressProblem),
    #[error("clusterIPs has no entry for {0}, which ipFamilies lists")]
    ClusterIpMissing(IpFamily),
    #[error("clusterIP is empty although clusterIPs is not")]
    ClusterIpEmpty,
    #[error("ipFamilies lists {0:?}, which is not an IP family")]
    IpFamily(String),
    #[error("externalIPs: {0}")]
    ExternalIp(AddressProblem),
    #[error("load balancer ingress: {0}")]
    IngressIp(AddressProblem),
    #[error("load balancer ingress {ip}: ipMode {mode:?} is unknown, the address is left alone")]
    IngressMode { ip: String, mode: String },
    #[error(
        "loadBalancerSourceRanges: {0:?} is not a CIDR, families without another range \
         admit nobody to the load balancer"
    )]
    SourceRange(String),
    #[error("internalTrafficPolicy {0:?} is unknown, Cluster is used")]
    InternalTrafficPolicy(String),
    #[error("externalTrafficPolicy {0:?} is unknown, Cluster is used")]
    ExternalTrafficPolicy(String),
    #[error("sessionAffinity {0:?} is unknown, None is used")]
    SessionAffinity(String),
    #[error(
        "sessionAffinityConfig: timeoutSeconds {0} is not positive, {default} is used",
        default = super::affinity::DEFAULT_SECONDS
    )]
    AffinityTimeout(i64),
    #[error("healthCheckNodePort {0} is not in 1-65535, no health check is answered")]
    HealthCheckPort(i64),
    #[error("port {name:?} has number {port}, which is not in 1-65535")]
    PortNumber { name: String, port: i64 },
    #[error("port {name:?} has nodePort {node_port}, which is not in 1-65535")]
    NodePort { name: String, node_port: i64 },
    #[error("port {name:?} has protocol {protocol:?}, which is unknown")]
    Protocol { name: String, protocol: String },
    #[error("port {name:?} {protocol} {port} repeats the name or the number of a port before it")]
    DuplicatePort {
        name: String,
        protocol: Protocol,
        port: u16,
    },
}

impl ServiceProblem {
    /// Short name of the problem, the label of its counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ClusterIp(problem) | Self::ExternalIp(problem) | Self::IngressIp(problem) => {
                problem.reason()
            }
            Self::Name(_) => "name",
            Self::ClusterIpMissing(_) | Self::ClusterIpEmpty => "address_missing",
            Self::IpFamily(_) => "ip_family",
            Self::IngressMode { .. } => "ip_mode",
            Self::SourceRange(_) => "cidr_syntax",
            Self::InternalTrafficPolicy(_) | Self::ExternalTrafficPolicy(_) => "traffic_policy",
            Self::SessionAffinity(_) | Self::AffinityTimeout(_) => "session_affinity",
            Self::HealthCheckPort(_) | Self::PortNumber { .. } | Self::NodePort { .. } => {
                "port_number"
            }
            Self::Protocol { .. } => "protocol",
            Self::DuplicatePort { .. } => "duplicate_port",
        }
    }
}
