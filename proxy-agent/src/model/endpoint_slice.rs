//! EndpointSlices: the endpoints of Services.

mod fields;
mod raw;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use k8s_openapi::jiff::Timestamp;
use proxy_common::net::Protocol;
use serde::{Deserialize, Serialize};

pub use self::fields::EndpointSliceFields;
use self::raw::{RawEndpoint, RawPort};
use super::{
    AddressProblem, IpFamily, Kind, Name, Object, ObjectKey, Placement, Problems,
    address::{classify, parse_address},
    api::{Field, List, Malformed, Metadata, Wanted},
    stored,
};

/// Slices of headless Services carry this label (S17).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Names the Service that owns a slice, in the slice's namespace (S17).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Annotation with the time of the change that a slice's version reflects (S28).
pub const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Some of the endpoints of a Service, of one family. Every endpoint has every
/// port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointPort {
    pub name: Name,
    #[serde(with = "stored::protocol")]
    pub protocol: Protocol,
    pub port: u16,
}

/// An address that serves, has served or will serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    #[serde(with = "stored::placement")]
    pub placement: Arc<Placement>,
}

impl Endpoint {
    /// Returns whether this one counts where another has the same address: a pod's
    /// address may be given to a new pod before the old pod's endpoint is gone
    /// (S23).
    pub fn supersedes(&self, other: &Self) -> bool {
        let rank = |endpoint: &Self| (!endpoint.terminating, endpoint.ready, endpoint.serving);
        rank(self) > rank(other)
    }

    /// Returns whether it may be used while no endpoint is ready (S32).
    pub fn is_last_resort(&self) -> bool {
        self.serving && self.terminating
    }
}

/// A reason why part of an EndpointSlice is not used.
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
    PortNumber { name: String, port: i64 },
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
    type Fields = EndpointSliceFields;
    const KIND: Kind = Kind::EndpointSlice;

    /// Labels, the type of the addresses, and the lists themselves fail if they
    /// are malformed: without them a Service would lose its endpoints. What is
    /// malformed in one endpoint or port costs that one.
    fn read(
        key: &ObjectKey,
        metadata: Metadata,
        fields: EndpointSliceFields,
        problems: &mut Problems,
    ) -> Result<Option<Self>, Malformed> {
        let labels = metadata.labels.or_default("metadata.labels")?;
        let Some(service) = owner(&labels, key, problems)? else {
            return Ok(None);
        };
        let address_type = fields.address_type.or_default("addressType")?;
        let Some(family) = family(&address_type, problems) else {
            return Ok(None);
        };
        let raw_ports = fields.ports.or_default("ports")?;
        let raw_endpoints = fields.endpoints.or_default("endpoints")?;
        Ok(Some(Self {
            key: key.clone(),
            service,
            family,
            ports: ports(raw_ports, problems),
            endpoints: endpoints(raw_endpoints, family, problems),
        }))
    }

    /// A time that cannot be read is none: it is measured, not used.
    fn triggered(metadata: &Metadata) -> Option<SystemTime> {
        let Field::Present(annotations) = &metadata.annotations else {
            return None;
        };
        let raw = annotations.annotation(TRIGGER_TIME_ANNOTATION)?;
        raw.parse::<Timestamp>().ok().map(SystemTime::from)
    }

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

/// The Service a slice belongs to, if it is one for this proxy (S17).
fn owner(
    labels: &Wanted,
    key: &ObjectKey,
    problems: &mut Problems,
) -> Result<Option<ObjectKey>, Malformed> {
    if labels.has(HEADLESS_LABEL) {
        return Ok(None);
    }
    let name = labels.label(SERVICE_NAME_LABEL)?;
    let name = name.filter(|name| !name.is_empty());
    if name.is_none() {
        problems.add(EndpointSliceProblem::NoServiceName);
    }
    Ok(name.map(|name| key.sibling(name)))
}

/// The family of a slice; none for host names, which are not proxied (S18).
fn family(raw: &str, problems: &mut Problems) -> Option<IpFamily> {
    let family = IpFamily::from_name(raw);
    if family.is_none() && raw != "FQDN" {
        problems.add(EndpointSliceProblem::AddressType(raw.to_owned()));
    }
    family
}

fn ports(raw: List<fields::PortFields>, problems: &mut Problems) -> Vec<EndpointPort> {
    let mut ports = BTreeSet::new();
    for (at, raw) in raw.into_iter().enumerate() {
        let raw = problems.note(RawPort::read(raw, at), "the port is left out");
        let Some(port) = raw.map(port) else {
            continue;
        };
        match port {
            Ok(port) if ports.contains(&port) => {
                problems.add(EndpointSliceProblem::DuplicatePort {
                    name: port.name.to_string(),
                    protocol: port.protocol,
                    port: port.port,
                });
            }
            Ok(port) => {
                ports.insert(port);
            }
            Err(problem) => problems.add(problem),
        }
    }
    // Collecting makes room for more, of which there will not be any.
    let mut ports: Vec<_> = ports.into_iter().collect();
    ports.shrink_to_fit();
    ports
}

fn port(raw: RawPort) -> Result<EndpointPort, EndpointSliceProblem> {
    let Some(name) = raw.name.map(String::from) else {
        return Err(EndpointSliceProblem::PortWithoutName);
    };
    let Some(protocol) = super::protocol(raw.protocol.as_deref()) else {
        let protocol = raw.protocol.unwrap_or_default().into();
        return Err(EndpointSliceProblem::Protocol { name, protocol });
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
    raw: List<fields::Endpoint>,
    family: IpFamily,
    problems: &mut Problems,
) -> Vec<Endpoint> {
    let mut endpoints = BTreeMap::new();
    for (at, raw) in raw.into_iter().enumerate() {
        let raw = RawEndpoint::read(raw, at);
        let Some(raw) = problems.note(raw, "the endpoint is not used") else {
            continue;
        };
        let inserted = endpoint(raw, family).and_then(|endpoint| insert(&mut endpoints, endpoint));
        if let Err(problem) = inserted {
            problems.add(problem);
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

fn endpoint(raw: RawEndpoint, family: IpFamily) -> Result<Endpoint, EndpointSliceProblem> {
    let Some(address) = raw.address else {
        return Err(EndpointSliceProblem::NoAddress);
    };
    let ip = parse_address(&address, Some(family))
        .and_then(|ip| match classify(ip) {
            None => Ok(ip),
            Some(class) => Err(AddressProblem::Special { ip, class }),
        })
        .map_err(EndpointSliceProblem::Address)?;
    Ok(Endpoint {
        ip,
        // Missing conditions mean ready, serving and not terminating (S19).
        ready: raw.ready.unwrap_or(true),
        serving: raw.serving.unwrap_or(true),
        terminating: raw.terminating.unwrap_or(false),
        placement: Placement {
            node: raw.node,
            zone_hints: name_set(raw.zone_hints),
            node_hints: name_set(raw.node_hints),
        }
        .shared(),
    })
}

/// The names in ascending order, each once.
fn name_set(names: Vec<Box<str>>) -> Box<[Box<str>]> {
    let names: BTreeSet<_> = names.into_iter().collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests;
