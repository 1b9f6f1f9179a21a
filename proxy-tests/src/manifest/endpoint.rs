//! An endpoint, as both slices of a Service hold it.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::{host::Addresses, node::Node, pod::Pod, tunnel::TunnelHost};

/// An endpoint: the same pod in the slices of both families.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub name: String,
    pub addresses: Addresses,
    pub node_name: String,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The zones that it is meant for; none: no hint.
    pub for_zones: Vec<String>,
    /// The nodes that it is meant for; none: no hint.
    pub for_nodes: Vec<String>,
}

impl Endpoint {
    fn healthy(name: &str, addresses: Addresses, node_name: &str) -> Self {
        Self {
            name: name.to_owned(),
            addresses,
            node_name: node_name.to_owned(),
            ready: true,
            serving: true,
            terminating: false,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }
    }

    /// About to end, and still serving.
    #[must_use]
    pub fn draining(self) -> Self {
        Self {
            ready: false,
            terminating: true,
            ..self
        }
    }

    /// Meant for one zone.
    #[must_use]
    pub fn for_zone(self, zone: &str) -> Self {
        Self {
            for_zones: vec![zone.to_owned()],
            ..self
        }
    }

    /// Meant for one node.
    #[must_use]
    pub fn for_node(self, node: &str) -> Self {
        Self {
            for_nodes: vec![node.to_owned()],
            ..self
        }
    }

    /// Returns the endpoint's entry in the slice that has `address`.
    pub(super) fn object(&self, address: IpAddr) -> Value {
        let mut object = json!({
            "addresses": [address.to_string()],
            "conditions": {
                "ready": self.ready,
                "serving": self.serving,
                "terminating": self.terminating,
            },
            "nodeName": self.node_name,
            "targetRef": { "kind": "Pod", "name": self.name, "namespace": "default" },
        });
        for (field, names) in [("forZones", &self.for_zones), ("forNodes", &self.for_nodes)] {
            if !names.is_empty() {
                let hints: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
                object["hints"][field] = json!(hints);
            }
        }
        object
    }
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self::healthy(pod.name(), pod.addresses(), pod.node_name())
    }
}

impl From<&TunnelHost> for Endpoint {
    fn from(host: &TunnelHost) -> Self {
        Self::healthy(host.name(), host.addresses(), host.node_name())
    }
}

/// A pod with `hostNetwork`.
impl From<&Node> for Endpoint {
    fn from(node: &Node) -> Self {
        Self::healthy(node.name(), node.addresses(), node.name())
    }
}
