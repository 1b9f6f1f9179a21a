//! EndpointSlices: where the traffic of a Service goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use k8s_openapi::{api::discovery::v1 as api, jiff::Timestamp};
use proxy_common::net::Protocol;

use super::{
    AddressProblem, IpFamily, Kind, Name, Object, ObjectKey, Parsed, Placement, Problem,
    address::{classify, parse_address},
};

/// Slices of headless Services carry this label (S17).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Names the Service that owns a slice, in the slice's namespace (S17).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// When the change happened that a slice's version reflects (S28).
pub const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Some of the endpoints of a Service, of one family. Every endpoint has every
/// port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub key: ObjectKey,
    /// The Service the endpoints belong to. It may not exist (yet).
    pub service: ObjectKey,
    pub family: IpFamily,
    /// Ascending, each once.
    pub ports: Vec<EndpointPort>,
    /// Ascending by address, each address once.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a slice. Belongs to the Service port of the same name and
/// protocol, whatever its number (S20).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    pub name: Name,
    pub protocol: Protocol,
    pub port: u16,
}

/// One address that serves, or did, or will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub placement: Arc<Placement>,
}

impl Endpoint {
    /// Whether this one counts where another has the same address: a pod's
    /// address may be given to a new pod before the old pod's endpoint is gone
    /// (S23).
    pub fn supersedes(&self, other: &Self) -> bool {
        let rank = |endpoint: &Self| (!endpoint.terminating, endpoint.ready, endpoint.serving);
        rank(self) > rank(other)
    }

    /// Whether it may be used while no endpoint is ready (S32).
    pub fn is_last_resort(&self) -> bool {
        self.serving && self.terminating
    }
}

/// Why part of an EndpointSlice is not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum EndpointSliceProblem {
    #[error("label {SERVICE_NAME_LABEL} is missing: the slice belongs to no Service")]
    NoServiceName,
    #[error("addressType {0:?} is unknown")]
    AddressType(String),
    #[error("endpoint address {0}")]
    Address(AddressProblem),
    #[error("an endpoint has no address")]
    NoAddress,
    #[error("endpoint address {0} occurs twice")]
    DuplicateEndpoint(IpAddr),
    #[error("a port has no name; the unnamed port of a Service is called \"\"")]
    PortWithoutName,
    #[error("port {name:?} has no number; slices for all ports are not supported")]
    PortWithoutNumber { name: String },
    #[error("port {name:?} has number {port}, which is not in 1-65535")]
    PortNumber { name: String, port: i32 },
    #[error("port {name:?} has protocol {protocol:?}, which is unknown")]
    Protocol { name: String, protocol: String },
    #[error("port {name:?} {protocol} {port} occurs twice")]
    DuplicatePort {
        name: String,
        protocol: Protocol,
        port: u16,
    },
}

impl EndpointSliceProblem {
    /// Short name of the problem, the label of its counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoServiceName => "no_service_name",
            Self::AddressType(_) => "ip_family",
            Self::Address(problem) => problem.reason(),
            Self::NoAddress => "address_missing",
            Self::DuplicateEndpoint(_) => "duplicate_endpoint",
            Self::PortWithoutName => "port_name",
            Self::PortWithoutNumber { .. } | Self::PortNumber { .. } => "port_number",
            Self::Protocol { .. } => "protocol",
            Self::DuplicatePort { .. } => "duplicate_port",
        }
    }
}

impl Object for EndpointSlice {
    type Api = api::EndpointSlice;
    const KIND: Kind = Kind::EndpointSlice;

    fn from_api(api: api::EndpointSlice) -> Parsed<Self> {
        let key = ObjectKey::of(&api.metadata);
        let triggered = trigger_time(&api);
        let mut problems = Vec::new();
        let value = owner(&api, &key, &mut problems).and_then(|service| {
            let family = family(&api.address_type, &mut problems)?;
            Some(Self {
                key: key.clone(),
                service,
                family,
                ports: ports(api.ports.unwrap_or_default(), &mut problems),
                endpoints: endpoints(api.endpoints.unwrap_or_default(), family, &mut problems),
            })
        });
        Parsed {
            key,
            value,
            problems: problems.into_iter().map(Problem::from).collect(),
            triggered,
        }
    }

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

/// The Service a slice belongs to, if it is one for this proxy (S17).
fn owner(
    api: &api::EndpointSlice,
    key: &ObjectKey,
    problems: &mut Vec<EndpointSliceProblem>,
) -> Option<ObjectKey> {
    let label = |name| api.metadata.labels.as_ref().and_then(|l| l.get(name));
    if label(HEADLESS_LABEL).is_some() {
        return None;
    }
    let name = label(SERVICE_NAME_LABEL).filter(|name| !name.is_empty());
    if name.is_none() {
        problems.push(EndpointSliceProblem::NoServiceName);
    }
    name.map(|name| key.sibling(name.as_str()))
}

/// The family of a slice; none for host names, which are not proxied (S18).
fn family(raw: &str, problems: &mut Vec<EndpointSliceProblem>) -> Option<IpFamily> {
    let family = IpFamily::from_name(raw);
    if family.is_none() && raw != "FQDN" {
        problems.push(EndpointSliceProblem::AddressType(raw.to_owned()));
    }
    family
}

fn trigger_time(api: &api::EndpointSlice) -> Option<SystemTime> {
    let annotations = api.metadata.annotations.as_ref()?;
    let raw = annotations.get(TRIGGER_TIME_ANNOTATION)?;
    raw.parse::<Timestamp>().ok().map(SystemTime::from)
}

fn ports(
    raw: Vec<api::EndpointPort>,
    problems: &mut Vec<EndpointSliceProblem>,
) -> Vec<EndpointPort> {
    let mut ports = BTreeSet::new();
    for raw in raw {
        match port(raw) {
            Ok(port) if ports.contains(&port) => {
                problems.push(EndpointSliceProblem::DuplicatePort {
                    name: port.name.to_string(),
                    protocol: port.protocol,
                    port: port.port,
                });
            }
            Ok(port) => {
                ports.insert(port);
            }
            Err(problem) => problems.push(problem),
        }
    }
    // Collecting makes room for more, of which there will not be any.
    let mut ports: Vec<_> = ports.into_iter().collect();
    ports.shrink_to_fit();
    ports
}

fn port(raw: api::EndpointPort) -> Result<EndpointPort, EndpointSliceProblem> {
    let Some(name) = raw.name else {
        return Err(EndpointSliceProblem::PortWithoutName);
    };
    let protocol = match super::protocol(raw.protocol) {
        Ok(protocol) => protocol,
        Err(protocol) => return Err(EndpointSliceProblem::Protocol { name, protocol }),
    };
    match raw.port.map(|port| (port, super::port_number(port))) {
        None => Err(EndpointSliceProblem::PortWithoutNumber { name }),
        Some((port, None)) => Err(EndpointSliceProblem::PortNumber { name, port }),
        Some((_, Some(port))) => Ok(EndpointPort {
            name: name.into(),
            protocol,
            port,
        }),
    }
}

fn endpoints(
    raw: Vec<api::Endpoint>,
    family: IpFamily,
    problems: &mut Vec<EndpointSliceProblem>,
) -> Vec<Endpoint> {
    let mut endpoints = BTreeMap::new();
    for raw in raw {
        match endpoint(raw, family) {
            Ok(endpoint) => {
                if let Err(problem) = insert(&mut endpoints, endpoint) {
                    problems.push(problem);
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    endpoints.into_values().collect()
}

fn insert(
    endpoints: &mut BTreeMap<IpAddr, Endpoint>,
    endpoint: Endpoint,
) -> Result<(), EndpointSliceProblem> {
    let ip = endpoint.ip;
    let Some(present) = endpoints.get_mut(&ip) else {
        endpoints.insert(ip, endpoint);
        return Ok(());
    };
    let both_live = !present.terminating && !endpoint.terminating;
    if endpoint.supersedes(present) {
        *present = endpoint;
    }
    if both_live {
        return Err(EndpointSliceProblem::DuplicateEndpoint(ip));
    }
    Ok(())
}

fn endpoint(raw: api::Endpoint, family: IpFamily) -> Result<Endpoint, EndpointSliceProblem> {
    // Further addresses have no meaning (S18).
    let Some(address) = raw.addresses.first() else {
        return Err(EndpointSliceProblem::NoAddress);
    };
    let ip = parse_address(address, Some(family))
        .and_then(|ip| match classify(ip) {
            None => Ok(ip),
            Some(class) => Err(AddressProblem::Special { ip, class }),
        })
        .map_err(EndpointSliceProblem::Address)?;
    let conditions = raw.conditions.unwrap_or_default();
    let hints = raw.hints.unwrap_or_default();
    let zones = hints.for_zones.into_iter().flatten().map(|zone| zone.name);
    let nodes = hints.for_nodes.into_iter().flatten().map(|node| node.name);
    Ok(Endpoint {
        ip,
        // S19
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        placement: Placement {
            node: raw.node_name.map(String::into_boxed_str),
            zone_hints: name_set(zones),
            node_hints: name_set(nodes),
        }
        .shared(),
    })
}

/// The names in ascending order, each once.
fn name_set(names: impl Iterator<Item = String>) -> Box<[Box<str>]> {
    let names: BTreeSet<_> = names.map(String::into_boxed_str).collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests;
