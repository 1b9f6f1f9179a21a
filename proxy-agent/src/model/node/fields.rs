//! The fields of a Node that are read.

use k8s_openapi::api::core::v1::Node;

use crate::model::api::{List, Metadata, api_fields};

api_fields! {
    pub struct NodeFields for Node {
        metadata: Metadata = "metadata",
        spec: Spec = "spec",
        status: Status = "status",
    }

    pub struct Spec {
        pod_cidr: Box<str> = "podCIDR",
        pod_cidrs: List<Box<str>> = "podCIDRs",
        taints: List<Taint> = "taints",
    }

    pub struct Taint {
        key: Box<str> = "key",
    }

    pub struct Status {
        addresses: List<Address> = "addresses",
    }

    pub struct Address {
        kind: Box<str> = "type",
        address: Box<str> = "address",
    }
}
