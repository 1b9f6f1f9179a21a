//! The Node object of this node: its zone, its pods' prefixes, its addresses.

mod fields;

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::family::{Family, V4, V6};
use serde::{Deserialize, Serialize};

pub use self::fields::NodeFields;
use super::{
    AddressProblem, FamilyIps, Kind, Object, ObjectKey, Problems,
    address::{parse_address, parse_cidr, prefix_of},
    api::{Field, List, Malformed, Metadata, Wanted},
};

/// The label that names a node's zone (S35).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The key of the taint that the cluster autoscaler gives a node before it removes it
/// (S108).
pub const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

const LEFT_OUT: &str = "it is left out";

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Without a namespace.
    pub key: ObjectKey,
    /// Never empty (S35).
    pub zone: Option<String>,
    /// Prefixes of this node's pods, in the order of the object.
    pub pod_cidrs: Vec<IpNet>,
    /// In the order of the object.
    pub addresses: Vec<NodeAddress>,
    /// The reason why it will be gone soon, if it will.
    pub leaving: Option<Leaving>,
}

/// A reason why a node takes no more clients of load balancers (S108).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaving {
    /// Somebody deletes the object.
    Deleted,
    /// It has the taint [`TO_BE_DELETED`], with any effect and value.
    ToBeDeleted,
}

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    pub kind: NodeAddressKind,
    pub ip: IpAddr,
}

/// The kind of a node's address. Host names are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeAddressKind {
    Internal,
    External,
}

/// A reason why part of a Node is not used.
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
    type Fields = NodeFields;
    const KIND: Kind = Kind::Node;

    /// Fails where pods' prefixes or the node's addresses are malformed as a whole:
    /// without prefixes no client would count as a pod, without addresses NodePorts
    /// would close. A malformed zone counts as none, as on a node without one: hints
    /// then keep no endpoint from being used.
    fn read(
        key: &ObjectKey,
        metadata: Metadata,
        fields: NodeFields,
        problems: &mut Problems,
    ) -> Result<Option<Self>, Malformed> {
        let mut spec = fields.spec.or_default("spec")?;
        let status = fields.status.or_default("status")?;
        let addresses = status.addresses.or_default("status.addresses")?;
        let is_deleted = !matches!(metadata.deletion_timestamp, Field::Absent);
        let is_to_be_deleted = is_to_be_deleted(std::mem::take(&mut spec.taints), problems);
        let leaving = if is_deleted {
            Some(Leaving::Deleted)
        } else {
            is_to_be_deleted.then_some(Leaving::ToBeDeleted)
        };
        let pod_cidrs = pod_cidrs(spec, problems)?;
        Ok(Some(Self {
            key: key.clone(),
            zone: problems
                .note(zone(metadata.labels), "topology hints have no effect")
                .flatten(),
            pod_cidrs,
            addresses: node_addresses(addresses, problems),
            leaving,
        }))
    }

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

fn zone(labels: Field<Wanted>) -> Result<Option<String>, Malformed> {
    let labels = labels.or_default("metadata.labels")?;
    let zone = labels.label(ZONE_LABEL)?;
    Ok(zone.filter(|zone| !zone.is_empty()).map(str::to_owned))
}

/// What cannot be read is no such taint: it must not take a node out of service.
fn is_to_be_deleted(taints: Field<List<fields::Taint>>, problems: &mut Problems) -> bool {
    let taints = problems.note(taints.or_default("spec.taints"), LEFT_OUT);
    let mut found = false;
    for (at, taint) in taints.into_iter().flatten().enumerate() {
        let path = format_args!("spec.taints[{at}]");
        let key = taint
            .or_default(path)
            .and_then(|taint| taint.key.or_default(format_args!("{path}.key")));
        found |= problems.note(key, LEFT_OUT).as_deref() == Some(TO_BE_DELETED);
    }
    found
}

fn pod_cidrs(spec: fields::Spec, problems: &mut Problems) -> Result<Vec<IpNet>, Malformed> {
    let mut listed = spec.pod_cidrs.or_default("spec.podCIDRs")?;
    if listed.is_empty() {
        // A Node stored before dual stack has one prefix, in a field of its own.
        let single = spec.pod_cidr.at("spec.podCIDR")?;
        listed.extend(single.map(Field::Present));
    }
    let mut cidrs = Vec::with_capacity(listed.len());
    for (at, raw) in listed.into_iter().enumerate() {
        let raw = raw.or_default(format_args!("spec.podCIDRs[{at}]"));
        let Some(raw) = problems.note(raw, LEFT_OUT) else {
            continue;
        };
        match parse_cidr(&raw) {
            Some(cidr) => cidrs.push(cidr),
            None => problems.add(NodeProblem::PodCidr(raw.into())),
        }
    }
    Ok(cidrs)
}

fn node_addresses(raw: List<fields::Address>, problems: &mut Problems) -> Vec<NodeAddress> {
    let mut addresses = Vec::with_capacity(raw.len());
    for (at, raw) in raw.into_iter().enumerate() {
        let raw = kind_and_address(raw, at);
        let Some((kind, address)) = problems.note(raw, LEFT_OUT) else {
            continue;
        };
        let kind = match &*kind {
            "InternalIP" => NodeAddressKind::Internal,
            "ExternalIP" => NodeAddressKind::External,
            _ => continue,
        };
        match parse_address(&address, None) {
            Ok(ip) => addresses.push(NodeAddress { kind, ip }),
            Err(problem) => problems.add(NodeProblem::Address(problem)),
        }
    }
    addresses
}

fn kind_and_address(
    address: Field<fields::Address>,
    at: usize,
) -> Result<(Box<str>, Box<str>), Malformed> {
    let path = format_args!("status.addresses[{at}]");
    let address = address.or_default(path)?;
    let kind = address.kind.or_default(format_args!("{path}.type"))?;
    let address = address.address.or_default(format_args!("{path}.address"))?;
    Ok((kind, address))
}

#[cfg(test)]
mod tests;
