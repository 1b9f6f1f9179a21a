//! Services: which addresses and ports clients dial.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::api::core::v1 as api;
use proxy_common::{family::Family, net::Protocol};

use super::{
    AddressProblem, IpFamily, Kind, Object, ObjectKey, Parsed, Problem,
    address::{AddressClass, classify, parse_address},
};

/// Services with this label belong to another proxy, whatever its value (S1).
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A Service this proxy serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: ObjectKey,
    pub cluster_ips: ClusterIps,
    /// internalTrafficPolicy: Local. Governs the cluster IPs only.
    pub internal_local: bool,
    /// Ordered by name and protocol, both together unique (S6).
    pub ports: Vec<ServicePort>,
}

/// The addresses clients in the cluster dial, at most one of each family (S3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterIps {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Empty for the unnamed port.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// Why part of a Service is not served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ServiceProblem {
    #[error("clusterIP {0}")]
    ClusterIp(AddressProblem),
    #[error("clusterIPs has no entry for {0}, which ipFamilies lists")]
    ClusterIpMissing(IpFamily),
    #[error("clusterIP is empty although clusterIPs is not")]
    ClusterIpEmpty,
    #[error("ipFamilies lists {0:?}, which is not an IP family")]
    IpFamily(String),
    #[error("internalTrafficPolicy {0:?} is unknown, Cluster is used")]
    InternalTrafficPolicy(String),
    #[error("port {name:?} has number {port}, which is not in 1-65535")]
    PortNumber { name: String, port: i32 },
    #[error("port {name:?} has protocol {protocol:?}, which is unknown")]
    Protocol { name: String, protocol: String },
    #[error("port {name:?}: SCTP is not supported yet")]
    SctpUnsupported { name: String },
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
            Self::ClusterIp(problem) => problem.reason(),
            Self::ClusterIpMissing(_) | Self::ClusterIpEmpty => "address_missing",
            Self::IpFamily(_) => "ip_family",
            Self::InternalTrafficPolicy(_) => "traffic_policy",
            Self::PortNumber { .. } => "port_number",
            Self::Protocol { .. } => "protocol",
            Self::SctpUnsupported { .. } => "unsupported",
            Self::DuplicatePort { .. } => "duplicate_port",
        }
    }
}

impl ClusterIps {
    /// The address of one family.
    pub fn get<F: Family>(self) -> Option<F::Ip> {
        let v4 = self.v4.map(IpAddr::V4);
        let v6 = self.v6.map(IpAddr::V6);
        v4.into_iter().chain(v6).find_map(F::from_ip)
    }
}

impl FromIterator<IpAddr> for ClusterIps {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(ips: I) -> Self {
        ips.into_iter().fold(Self::default(), |ips, ip| match ip {
            IpAddr::V4(ip) => Self {
                v4: Some(ip),
                ..ips
            },
            IpAddr::V6(ip) => Self {
                v6: Some(ip),
                ..ips
            },
        })
    }
}

impl Object for Service {
    type Api = api::Service;
    const KIND: Kind = Kind::Service;

    fn from_api(mut api: api::Service) -> Parsed<Self> {
        let key = ObjectKey::of(&mut api.metadata);
        let mut problems = Vec::new();
        let other_proxy = api
            .metadata
            .labels
            .is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
        let value = api
            .spec
            .filter(|spec| !other_proxy && is_proxied(spec, &mut problems))
            .map(|spec| Self {
                key: key.clone(),
                cluster_ips: cluster_ips(&spec, &mut problems),
                internal_local: internal_local(spec.internal_traffic_policy, &mut problems),
                ports: ports(spec.ports.unwrap_or_default(), &mut problems),
            });
        Parsed {
            key,
            value,
            problems: problems.into_iter().map(Problem::from).collect(),
            triggered: None,
        }
    }

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

/// Whether a Service has a cluster IP to be proxied at all (S2).
fn is_proxied(spec: &api::ServiceSpec, problems: &mut Vec<ServiceProblem>) -> bool {
    if spec.type_.as_deref() == Some("ExternalName") {
        return false;
    }
    match spec.cluster_ip.as_deref() {
        Some("None") => false,
        None | Some("") => {
            let listed = spec.cluster_ips.iter().flatten();
            if listed.into_iter().any(|ip| ip != "None" && !ip.is_empty()) {
                problems.push(ServiceProblem::ClusterIpEmpty);
            }
            false
        }
        Some(_) => true,
    }
}

/// The cluster IP of each family (S4).
fn cluster_ips(spec: &api::ServiceSpec, problems: &mut Vec<ServiceProblem>) -> ClusterIps {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.is_empty() {
        // Stored before Services had families: one address, which tells its own.
        let raw = spec.cluster_ip.as_deref().unwrap_or_default();
        return cluster_ip(raw, None, problems).into_iter().collect();
    }
    for family in families {
        if IpFamily::from_name(family).is_none() {
            problems.push(ServiceProblem::IpFamily(family.clone()));
        }
    }
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    IpFamily::ALL
        .into_iter()
        .filter_map(|family| {
            let position = families.iter().position(|name| name == family.name())?;
            let Some(raw) = listed.get(position).filter(|raw| !raw.is_empty()) else {
                problems.push(ServiceProblem::ClusterIpMissing(family));
                return None;
            };
            cluster_ip(raw, Some(family), problems)
        })
        .collect()
}

fn cluster_ip(
    raw: &str,
    family: Option<IpFamily>,
    problems: &mut Vec<ServiceProblem>,
) -> Option<IpAddr> {
    let usable = parse_address(raw, family).and_then(|ip| match classify(ip) {
        // Link-local cluster IPs are odd but work.
        None | Some(AddressClass::LinkLocal) => Ok(ip),
        Some(class) => Err(AddressProblem::Special { ip, class }),
    });
    usable
        .map_err(|problem| problems.push(ServiceProblem::ClusterIp(problem)))
        .ok()
}

fn internal_local(raw: Option<String>, problems: &mut Vec<ServiceProblem>) -> bool {
    match raw.as_deref() {
        Some("Local") => true,
        None | Some("Cluster") => false,
        Some(_) => {
            problems.extend(raw.map(ServiceProblem::InternalTrafficPolicy));
            false
        }
    }
}

/// The usable ports. Of two with one name or one number (per protocol), the
/// first counts.
fn ports(raw: Vec<api::ServicePort>, problems: &mut Vec<ServiceProblem>) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::with_capacity(raw.len());
    for raw in raw {
        match port(raw) {
            Ok(port) => {
                let name = (port.name.clone(), port.protocol);
                let number = (port.port, port.protocol);
                if names.contains(&name) || numbers.contains(&number) {
                    problems.push(ServiceProblem::DuplicatePort {
                        name: port.name,
                        protocol: port.protocol,
                        port: port.port,
                    });
                } else {
                    names.insert(name);
                    numbers.insert(number);
                    ports.push(port);
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    ports.sort_unstable();
    ports
}

fn port(raw: api::ServicePort) -> Result<ServicePort, ServiceProblem> {
    let name = raw.name.unwrap_or_default();
    let protocol = match super::protocol(raw.protocol) {
        Ok(Protocol::SCTP) => return Err(ServiceProblem::SctpUnsupported { name }),
        Ok(protocol) => protocol,
        Err(protocol) => return Err(ServiceProblem::Protocol { name, protocol }),
    };
    match super::port_number(raw.port) {
        Some(port) => Ok(ServicePort {
            name,
            protocol,
            port,
        }),
        None => Err(ServiceProblem::PortNumber {
            name,
            port: raw.port,
        }),
    }
}

#[cfg(test)]
mod tests;
