//! Selection of each Service port's frontends on this node, and of the endpoints
//! that it uses (S31–S37).
//!
//! Pure: [`select_service`] looks at one Service, its EndpointSlices and this
//! node, in one family, and says what the tables should hold. `addresses` knows
//! a Service's frontends and who may use them, [`categorize`] traffic policies, topology and
//! terminating endpoints; this file puts their verdicts together.

mod addresses;
pub(crate) mod categorize;
pub(crate) mod frontend;

use std::collections::BTreeMap;

use proxy_common::family::Family;

pub use self::frontend::{DesiredFrontend, FrontendAddress, FrontendKind};
use self::{
    addresses::Addresses,
    categorize::{Categories, Policy},
};
use crate::model::{
    Cidr, Endpoint, EndpointSlice, FamilyIps, Service, ServicePort, ServicePortName,
};

/// The properties of this node that selection depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeContext {
    /// Name of its Node object.
    pub name: String,
    /// Its zone. Without one, no zone hint means this node (S35).
    pub zone: Option<String>,
    /// Its main address of each family (S53, S59).
    pub ips: FamilyIps,
    /// spec.externalIPs are served (S7).
    pub external_ips: bool,
}

impl NodeContext {
    /// A node of which only the name is known.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            zone: None,
            ips: FamilyIps::default(),
            external_ips: true,
        }
    }
}

/// A Service port as this node should serve it in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort<F: Family> {
    pub name: ServicePortName,
    pub frontends: Vec<DesiredFrontend<F>>,
    /// Every endpoint of this port, also those no set uses: UDP flows may stay
    /// on one that is still serving (S77).
    pub endpoints: BTreeMap<(F::Ip, u16), EndpointUse>,
    /// Session affinity: seconds without a new connection after which a client
    /// is forgotten (S72). Nothing or 0: none.
    pub affinity: Option<u32>,
    /// Clients that may use the restricted frontends (S58).
    pub source_ranges: Vec<Cidr<F>>,
    /// The treatment of a new flow when the cluster set is empty.
    pub cluster_empty: WhenEmpty,
    /// The treatment of a new flow when the local set is empty.
    pub local_empty: WhenEmpty,
}

/// The uses of an endpoint: the sets it is in.
#[expect(clippy::struct_excessive_bools, reason = "any of them may be set")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointUse {
    pub serving: bool,
    /// On this node (S21).
    pub here: bool,
    /// Member of the cluster set (S32).
    pub cluster: bool,
    /// Member of the local set (S33).
    pub local: bool,
}

/// The treatment of new flows by an empty set of endpoints (S43).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenEmpty {
    /// No endpoint anywhere can serve: refuse.
    Reject,
    /// Endpoints exist, but not for this path: drop.
    Drop,
}

/// Selects the ports that this node serves of a Service in one family; empty if the
/// Service has no cluster IP of that family (S3).
pub fn select_service<'a, F: Family>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeContext,
) -> Vec<DesiredPort<F>> {
    let Some(addresses) = Addresses::of(service, node) else {
        return Vec::new();
    };
    let slices: Vec<_> = slices.into_iter().collect();
    let select = |port| select_port(service, port, &addresses, &slices, node);
    service.ports.iter().map(select).collect()
}

fn select_port<F: Family>(
    service: &Service,
    port: &ServicePort,
    addresses: &Addresses<F>,
    slices: &[&EndpointSlice],
    node: &NodeContext,
) -> DesiredPort<F> {
    let frontends = addresses.frontends(service, port);
    let policy = Policy {
        internal_local: service.internal_local,
        external_local: service.external_local,
        externally_accessible: frontends
            .iter()
            .any(|frontend| frontend.kind != FrontendKind::ClusterIp),
    };
    let endpoints = merge::<F>(port, slices);
    let categories = Categories::new(endpoints.values().copied(), policy, node);
    let empty = when_empty(&categories);
    DesiredPort {
        name: ServicePortName {
            service: service.key.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        },
        frontends,
        endpoints: endpoints
            .into_iter()
            .map(|(address, endpoint)| (address, categories.endpoint_use(endpoint)))
            .collect(),
        affinity: service.affinity,
        source_ranges: addresses.source_ranges.clone(),
        cluster_empty: empty,
        local_empty: empty,
    }
}

/// The endpoints of a port from all slices (S20, S22): those whose port has the
/// same name and protocol, each with the number its own slice gives. One
/// address may occur in several slices, then one of them counts (S23).
fn merge<'a, F: Family>(
    port: &ServicePort,
    slices: &[&'a EndpointSlice],
) -> BTreeMap<(F::Ip, u16), &'a Endpoint> {
    let mut endpoints: BTreeMap<_, &Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter();
        let ours = ports.filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in ours.map(|port| port.port) {
            for endpoint in &slice.endpoints {
                let Some(ip) = F::from_ip(endpoint.ip) else {
                    continue;
                };
                let present = endpoints.entry((ip, number)).or_insert(endpoint);
                if endpoint.supersedes(present) {
                    *present = endpoint;
                }
            }
        }
    }
    endpoints
}

/// S43: refused if nobody anywhere could serve, dropped if only nobody here.
fn when_empty(categories: &Categories<'_>) -> WhenEmpty {
    if categories.has_any() {
        WhenEmpty::Drop
    } else {
        WhenEmpty::Reject
    }
}

#[cfg(test)]
mod tests;
