//! Services: which addresses and ports clients dial, and who may.

mod affinity;
mod external;
mod problem;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use proxy_common::{net::Protocol, service::NAME_LEN};

pub use self::problem::ServiceProblem;
use super::{
    AddressProblem, FamilyIps, IpFamily, Kind, Name, Object, ObjectKey, Parsed, Problem,
    address::{AddressClass, classify, parse_address},
};

/// Services with this label belong to another proxy, whatever its value (S1).
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A Service this proxy serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub key: ObjectKey,
    /// The addresses clients in the cluster dial (S3).
    pub cluster_ips: FamilyIps,
    /// spec.externalIPs, each once, in ascending order (S7).
    pub external_ips: Vec<IpAddr>,
    /// The load balancer's addresses that this proxy answers for, each once, in
    /// ascending order (S8).
    pub load_balancer_ips: Vec<IpAddr>,
    /// spec.loadBalancerSourceRanges, each once, in ascending order (S9).
    pub source_ranges: Vec<IpNet>,
    /// internalTrafficPolicy: Local. Governs the cluster IPs only.
    pub internal_local: bool,
    /// externalTrafficPolicy: Local, where it counts (S10). Governs all others.
    pub external_local: bool,
    /// Session affinity by client address: seconds without a new connection
    /// after which a client is forgotten (S72).
    pub affinity: Option<u32>,
    /// Where the load balancer asks this node whether it has endpoints, if it
    /// does (S12).
    pub health_check_port: Option<u16>,
    /// Ordered by name and protocol, both together unique (S6).
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Empty for the unnamed port.
    pub name: Name,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

impl ServicePort {
    /// A port without a NodePort.
    pub fn new(name: impl Into<Name>, protocol: Protocol, port: u16) -> Self {
        Self {
            name: name.into(),
            protocol,
            port,
            node_port: None,
        }
    }
}

impl Object for Service {
    type Api = api::Service;
    const KIND: Kind = Kind::Service;

    fn from_api(api: api::Service) -> Parsed<Self> {
        let key = ObjectKey::of(&api.metadata);
        let mut problems = Vec::new();
        let other_proxy = api
            .metadata
            .labels
            .is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
        let status = api.status.unwrap_or_default();
        let value = api
            .spec
            .filter(|spec| !other_proxy && is_proxied(spec, &mut problems))
            .filter(|_| is_nameable(&key, &mut problems))
            .map(|spec| {
                let external_local = external::policy_is_local(&spec, &mut problems);
                Self {
                    key: key.clone(),
                    cluster_ips: cluster_ips(&spec, &mut problems),
                    external_ips: external::external_ips(&spec, &mut problems),
                    load_balancer_ips: external::load_balancer_ips(status, &mut problems),
                    source_ranges: external::source_ranges(&spec, &mut problems),
                    internal_local: internal_local(
                        spec.internal_traffic_policy.as_deref(),
                        &mut problems,
                    ),
                    external_local,
                    affinity: affinity::seconds(&spec, &mut problems),
                    health_check_port: external_local
                        .then(|| external::health_check_port(&spec, &mut problems))
                        .flatten(),
                    ports: ports(spec.ports.unwrap_or_default(), &mut problems),
                }
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

/// Whether the tables can hold a Service's name and namespace. The API server
/// takes no others, but manifests may have them.
fn is_nameable(key: &ObjectKey, problems: &mut Vec<ServiceProblem>) -> bool {
    let mut names = [key.namespace(), key.name()].into_iter();
    match names.find(|name| !fits(name)) {
        Some(name) => problems.push(ServiceProblem::Name(name.to_owned())),
        None => return true,
    }
    false
}

fn fits(name: &str) -> bool {
    name.len() <= NAME_LEN && !name.contains('\0')
}

/// The cluster IP of each family (S4).
fn cluster_ips(spec: &api::ServiceSpec, problems: &mut Vec<ServiceProblem>) -> FamilyIps {
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
    dialled_address(raw, family)
        .map_err(|problem| problems.push(ServiceProblem::ClusterIp(problem)))
        .ok()
}

/// An address that clients may dial.
fn dialled_address(raw: &str, family: Option<IpFamily>) -> Result<IpAddr, AddressProblem> {
    let ip = parse_address(raw, family)?;
    match classify(ip) {
        // Link-local addresses are odd but work.
        None | Some(AddressClass::LinkLocal) => Ok(ip),
        Some(class) => Err(AddressProblem::Special { ip, class }),
    }
}

fn internal_local(raw: Option<&str>, problems: &mut Vec<ServiceProblem>) -> bool {
    policy_is_local(raw).unwrap_or_else(|raw| {
        problems.push(ServiceProblem::InternalTrafficPolicy(raw));
        false
    })
}

/// Whether a traffic policy is Local; none means Cluster. An error is another
/// policy's name.
fn policy_is_local(raw: Option<&str>) -> Result<bool, String> {
    match raw {
        Some("Local") => Ok(true),
        // An empty one is how old objects and controllers spell none.
        None | Some("" | "Cluster") => Ok(false),
        Some(other) => Err(other.to_owned()),
    }
}

/// The usable ports. Of two with one name or one number (per protocol), the
/// first counts.
fn ports(raw: Vec<api::ServicePort>, problems: &mut Vec<ServiceProblem>) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::with_capacity(raw.len());
    for raw in raw {
        match port(raw, problems) {
            Ok(port) => {
                let name = (port.name.clone(), port.protocol);
                let number = (port.port, port.protocol);
                if names.contains(&name) || numbers.contains(&number) {
                    problems.push(ServiceProblem::DuplicatePort {
                        name: port.name.to_string(),
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

fn port(
    raw: api::ServicePort,
    problems: &mut Vec<ServiceProblem>,
) -> Result<ServicePort, ServiceProblem> {
    let name = raw.name.unwrap_or_default();
    if !fits(&name) {
        return Err(ServiceProblem::Name(name));
    }
    let protocol = match super::protocol(raw.protocol) {
        Ok(protocol) => protocol,
        Err(protocol) => return Err(ServiceProblem::Protocol { name, protocol }),
    };
    let Some(port) = super::port_number(raw.port) else {
        return Err(ServiceProblem::PortNumber {
            name,
            port: raw.port,
        });
    };
    // 0 stands for none (S12).
    let node_port = raw.node_port.filter(|node_port| *node_port != 0);
    let usable = node_port.and_then(super::port_number);
    if let (Some(node_port), None) = (node_port, usable) {
        problems.push(ServiceProblem::NodePort {
            name: name.clone(),
            node_port,
        });
    }
    Ok(ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port: usable,
    })
}

#[cfg(test)]
mod tests;
