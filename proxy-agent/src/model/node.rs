//! The Node object of this node: its zone, its pods' prefixes, its addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use proxy_common::family::{Family, V4, V6};

use super::{
    AddressProblem, FamilyIps, Kind, Object, ObjectKey, Parsed, Problem,
    address::{parse_address, parse_cidr, prefix_of},
};

/// The label that names a node's zone (S35).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Without a namespace.
    pub key: ObjectKey,
    /// Never empty (S35).
    pub zone: Option<String>,
    /// Prefixes of this node's pods, in the order of the object.
    pub pod_cidrs: Vec<IpNet>,
    /// In the order of the object.
    pub addresses: Vec<NodeAddress>,
}

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    pub kind: NodeAddressKind,
    pub ip: IpAddr,
}

/// What a node's address is for. Host names are no addresses here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAddressKind {
    Internal,
    External,
}

/// Why part of a Node is not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum NodeProblem {
    #[error("podCIDR {0:?} is not a CIDR")]
    PodCidr(String),
    #[error("node address {0}")]
    Address(AddressProblem),
}

impl NodeProblem {
    /// Short name of the problem, the label of its counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PodCidr(_) => "cidr_syntax",
            Self::Address(problem) => problem.reason(),
        }
    }
}

impl Node {
    /// The prefix of this node's pods in one family: the first of them (S68).
    pub fn pod_cidr<F: Family>(&self) -> Option<(F::Ip, u8)> {
        self.pod_cidrs.iter().copied().find_map(prefix_of::<F>)
    }

    /// The node's address in each family.
    pub fn ips(&self) -> FamilyIps {
        FamilyIps {
            v4: self.ip::<V4>(),
            v6: self.ip::<V6>(),
        }
    }

    /// The node's address in one family: its first internal one, else its
    /// first external one (S53).
    pub fn ip<F: Family>(&self) -> Option<F::Ip> {
        let first = |kind| {
            let mut addresses = self.addresses.iter().filter(|a| a.kind == kind);
            addresses.find_map(|address| F::from_ip(address.ip))
        };
        first(NodeAddressKind::Internal).or_else(|| first(NodeAddressKind::External))
    }
}

impl Object for Node {
    type Api = api::Node;
    const KIND: Kind = Kind::Node;

    fn from_api(api: api::Node) -> Parsed<Self> {
        let key = ObjectKey::of(&api.metadata);
        let mut problems = Vec::new();
        let zone = api
            .metadata
            .labels
            .and_then(|mut labels| labels.remove(ZONE_LABEL))
            .filter(|zone| !zone.is_empty());
        let addresses = api.status.and_then(|status| status.addresses);
        let value = Self {
            key: key.clone(),
            zone,
            pod_cidrs: pod_cidrs(api.spec.unwrap_or_default(), &mut problems),
            addresses: node_addresses(addresses.unwrap_or_default(), &mut problems),
        };
        Parsed {
            key,
            value: Some(value),
            problems: problems.into_iter().map(Problem::from).collect(),
            triggered: None,
        }
    }

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

fn pod_cidrs(spec: api::NodeSpec, problems: &mut Vec<NodeProblem>) -> Vec<IpNet> {
    let listed = spec.pod_cidrs.filter(|listed| !listed.is_empty());
    // A Node stored before dual stack has one prefix, in a field of its own.
    let raw = listed.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let mut cidrs = Vec::with_capacity(raw.len());
    for raw in raw {
        match parse_cidr(&raw) {
            Some(cidr) => cidrs.push(cidr),
            None => problems.push(NodeProblem::PodCidr(raw)),
        }
    }
    cidrs
}

fn node_addresses(raw: Vec<api::NodeAddress>, problems: &mut Vec<NodeProblem>) -> Vec<NodeAddress> {
    let mut addresses = Vec::with_capacity(raw.len());
    for raw in raw {
        let kind = match raw.type_.as_str() {
            "InternalIP" => NodeAddressKind::Internal,
            "ExternalIP" => NodeAddressKind::External,
            _ => continue,
        };
        match parse_address(&raw.address, None) {
            Ok(ip) => addresses.push(NodeAddress { kind, ip }),
            Err(problem) => problems.push(NodeProblem::Address(problem)),
        }
    }
    addresses
}

#[cfg(test)]
mod tests;
