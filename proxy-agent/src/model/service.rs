//! Services: their addresses and ports, and which clients may use them.

mod affinity;
mod external;
mod fields;
mod problem;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proxy_common::{net::Protocol, service::NAME_LEN};
use serde::{Deserialize, Serialize};

pub use self::{fields::ServiceFields, problem::ServiceProblem};
use super::{
    AddressProblem, FamilyIps, IpFamily, Kind, Name, Object, ObjectKey, Problems,
    address::{AddressClass, classify, parse_address},
    api::{Field, List, Malformed, Metadata},
    stored,
};

/// Services with this label belong to another proxy, whatever its value (S1).
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A Service this proxy serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub key: ObjectKey,
    /// The cluster IPs, the addresses for clients in the cluster (S3).
    pub cluster_ips: FamilyIps,
    /// spec.externalIPs, each once, in ascending order (S7).
    pub external_ips: Vec<IpAddr>,
    /// The load balancer's addresses that this proxy answers for, each once, in
    /// ascending order (S8).
    pub load_balancer_ips: Vec<IpAddr>,
    /// spec.loadBalancerSourceRanges, each once, in ascending order (S9).
    pub source_ranges: Vec<IpNet>,
    /// True if spec.loadBalancerSourceRanges has an entry that is not a range.
    /// A family that has no range then admits nobody.
    pub unusable_source_ranges: bool,
    /// internalTrafficPolicy: Local. Governs the cluster IPs only.
    pub internal_local: bool,
    /// externalTrafficPolicy: Local, where it counts (S10). Governs all others.
    pub external_local: bool,
    /// Session affinity by client address: seconds without a new connection
    /// after which a client is forgotten (S72).
    pub affinity: Option<u32>,
    /// The port on which the load balancer asks this node whether it has endpoints, if it
    /// does (S12).
    pub health_check_port: Option<u16>,
    /// Ordered by name and protocol, both together unique (S6).
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    /// Empty for the unnamed port.
    pub name: Name,
    #[serde(with = "stored::protocol")]
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
    type Fields = ServiceFields;
    const KIND: Kind = Kind::Service;

    fn read(
        key: &ObjectKey,
        metadata: Metadata,
        fields: ServiceFields,
        problems: &mut Problems,
    ) -> Result<Option<Self>, Malformed> {
        // Another proxy's Service must not become ours by what cannot be read.
        let labels = metadata.labels.at("metadata.labels")?;
        if labels.is_some_and(|labels| labels.has(PROXY_NAME_LABEL)) {
            return Ok(None);
        }
        let Some(spec) = fields.spec.at("spec")? else {
            return Ok(None);
        };
        let kind = spec.kind.at("spec.type")?;
        if kind.as_deref() == Some("ExternalName") {
            return Ok(None);
        }
        // Each of them decides what is served at all, and to whom.
        let cluster_ip = spec.cluster_ip.at("spec.clusterIP")?;
        let cluster_ips = spec.cluster_ips.or_default("spec.clusterIPs")?;
        if !is_proxied(cluster_ip.as_deref(), &cluster_ips, problems) || !is_nameable(key, problems)
        {
            return Ok(None);
        }
        let families = spec.ip_families.or_default("spec.ipFamilies")?;
        let raw_ports = spec.ports.or_default("spec.ports")?;
        let affinity = affinity::seconds(spec.affinity, spec.affinity_config, problems)?;
        let external_ips = external::listed_external_ips(spec.external_ips, problems);
        let external_local = external::policy_is_local(spec.external_policy, problems)?
            && external::is_external(kind.as_deref(), !external_ips.is_empty());
        let internal_local = internal_local(spec.internal_policy, problems)?;
        let source_ranges = external::source_ranges(spec.source_ranges, problems);
        let health_check_port = external_local.then(|| {
            external::health_check_port(kind.as_deref(), spec.health_check_port, problems)
        });
        Ok(Some(Self {
            key: key.clone(),
            cluster_ips: self::cluster_ips(
                cluster_ip.as_deref().unwrap_or_default(),
                cluster_ips,
                &families,
                problems,
            ),
            external_ips: external::external_ips(external_ips, problems),
            load_balancer_ips: external::load_balancer_ips(fields.status, problems),
            source_ranges: source_ranges.usable,
            unusable_source_ranges: source_ranges.some_unusable,
            internal_local,
            external_local,
            affinity,
            health_check_port: health_check_port.flatten(),
            ports: ports(raw_ports, problems),
        }))
    }

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

/// Returns whether a Service has a cluster IP to be proxied at all (S2).
fn is_proxied(ip: Option<&str>, listed: &List<Box<str>>, problems: &mut Problems) -> bool {
    match ip {
        Some("None") => false,
        None | Some("") => {
            let is_ip = |ip: &Field<Box<str>>| match ip {
                Field::Absent => false,
                Field::Present(ip) => !matches!(&**ip, "None" | ""),
                Field::Wrong(_) => true,
            };
            if listed.iter().any(is_ip) {
                problems.add(ServiceProblem::ClusterIpEmpty);
            }
            false
        }
        Some(_) => true,
    }
}

/// Returns whether the tables can hold a Service's name and namespace. The API server
/// takes no others, but manifests may have them.
fn is_nameable(key: &ObjectKey, problems: &mut Problems) -> bool {
    let mut names = [key.namespace(), key.name()].into_iter();
    match names.find(|name| !fits(name)) {
        Some(name) => problems.add(ServiceProblem::Name(name.to_owned())),
        None => return true,
    }
    false
}

fn fits(name: &str) -> bool {
    name.len() <= NAME_LEN && !name.contains('\0')
}

/// The cluster IP of each family (S4). One that is malformed costs its family.
fn cluster_ips(
    first: &str,
    mut listed: List<Box<str>>,
    families: &[Field<Box<str>>],
    problems: &mut Problems,
) -> FamilyIps {
    if families.is_empty() {
        // Stored before Services had families: one address, which tells its own.
        return cluster_ip(first, None, problems).into_iter().collect();
    }
    let mut names = Vec::with_capacity(families.len());
    for (at, family) in families.iter().enumerate() {
        let name = family.as_ref().at(format_args!("spec.ipFamilies[{at}]"));
        let name = problems.note(name, "its family is not served").flatten();
        let family = name.and_then(|name| IpFamily::from_name(name));
        if let (Some(name), None) = (name, family) {
            problems.add(ServiceProblem::IpFamily(name.to_string()));
        }
        names.push(family);
    }
    IpFamily::ALL
        .into_iter()
        .filter_map(|family| {
            let at = names.iter().position(|name| *name == Some(family))?;
            let raw = listed.get_mut(at).map(std::mem::take).unwrap_or_default();
            let raw = raw.or_default(format_args!("spec.clusterIPs[{at}]"));
            let raw = problems.note(raw, "its family is not served")?;
            if raw.is_empty() {
                problems.add(ServiceProblem::ClusterIpMissing(family));
                return None;
            }
            cluster_ip(&raw, Some(family), problems)
        })
        .collect()
}

fn cluster_ip(raw: &str, family: Option<IpFamily>, problems: &mut Problems) -> Option<IpAddr> {
    frontend_address(raw, family)
        .map_err(|problem| problems.add(ServiceProblem::ClusterIp(problem)))
        .ok()
}

/// Checks that an address can be a frontend's.
fn frontend_address(raw: &str, family: Option<IpFamily>) -> Result<IpAddr, AddressProblem> {
    let ip = parse_address(raw, family)?;
    match classify(ip) {
        // Link-local addresses are odd but work.
        None | Some(AddressClass::LinkLocal) => Ok(ip),
        Some(class) => Err(AddressProblem::Special { ip, class }),
    }
}

/// internalTrafficPolicy: Local. A malformed policy fails: under the other one
/// traffic would go to other endpoints.
fn internal_local(policy: Field<Box<str>>, problems: &mut Problems) -> Result<bool, Malformed> {
    let policy = policy.at("spec.internalTrafficPolicy")?;
    Ok(policy_is_local(policy.as_deref()).unwrap_or_else(|policy| {
        problems.add(ServiceProblem::InternalTrafficPolicy(policy));
        false
    }))
}

/// Returns whether a traffic policy is Local; none means Cluster. An error is another
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
fn ports(raw: List<fields::PortFields>, problems: &mut Problems) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::with_capacity(raw.len());
    for (at, raw) in raw.into_iter().enumerate() {
        let raw = problems.note(RawPort::read(raw, at), "the port is left out");
        let Some(port) = raw.and_then(|raw| port(raw, problems)) else {
            continue;
        };
        let name = (port.name.clone(), port.protocol);
        let number = (port.port, port.protocol);
        if names.contains(&name) || numbers.contains(&number) {
            problems.add(ServiceProblem::DuplicatePort {
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
    ports.sort_unstable();
    ports
}

/// A port of which everything has the type that it should have.
struct RawPort {
    name: Box<str>,
    protocol: Option<Box<str>>,
    port: i64,
    /// The NodePort may be malformed: the others are served then.
    node_port: Result<Option<i64>, Malformed>,
}

impl RawPort {
    fn read(port: Field<fields::PortFields>, at: usize) -> Result<Self, Malformed> {
        let path = format_args!("spec.ports[{at}]");
        let port = port.or_default(path)?;
        Ok(Self {
            name: port.name.or_default(format_args!("{path}.name"))?,
            protocol: port.protocol.at(format_args!("{path}.protocol"))?,
            port: port.port.or_default(format_args!("{path}.port"))?,
            node_port: port.node_port.at(format_args!("{path}.nodePort")),
        })
    }
}

fn port(raw: RawPort, problems: &mut Problems) -> Option<ServicePort> {
    let name = String::from(raw.name);
    if !fits(&name) {
        problems.add(ServiceProblem::Name(name));
        return None;
    }
    let Some(protocol) = super::protocol(raw.protocol.as_deref()) else {
        let protocol = raw.protocol.unwrap_or_default().into();
        problems.add(ServiceProblem::Protocol { name, protocol });
        return None;
    };
    let Some(port) = super::port_number(raw.port) else {
        let port = raw.port;
        problems.add(ServiceProblem::PortNumber { name, port });
        return None;
    };
    let node_port = problems.note(raw.node_port, "it is left out").flatten();
    // 0 stands for none (S12).
    let node_port = node_port.filter(|node_port| *node_port != 0);
    let usable = node_port.and_then(super::port_number);
    if let (Some(node_port), None) = (node_port, usable) {
        problems.add(ServiceProblem::NodePort {
            name: name.clone(),
            node_port,
        });
    }
    Some(ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port: usable,
    })
}

#[cfg(test)]
mod tests;
