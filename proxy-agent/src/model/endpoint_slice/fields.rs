//! The fields of an EndpointSlice that are read.

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::model::api::{List, Metadata, api_fields};

api_fields! {
    pub struct EndpointSliceFields for EndpointSlice {
        metadata: Metadata = "metadata",
        address_type: Box<str> = "addressType",
        ports: List<PortFields> = "ports",
        endpoints: List<Endpoint> = "endpoints",
    }

    pub struct PortFields {
        name: Box<str> = "name",
        protocol: Box<str> = "protocol",
        port: i64 = "port",
    }

    pub struct Endpoint {
        addresses: List<Box<str>> = "addresses",
        conditions: Conditions = "conditions",
        node_name: Box<str> = "nodeName",
        hints: Hints = "hints",
    }

    pub struct Conditions {
        ready: bool = "ready",
        serving: bool = "serving",
        terminating: bool = "terminating",
    }

    pub struct Hints {
        for_zones: List<Hint> = "forZones",
        for_nodes: List<Hint> = "forNodes",
    }

    pub struct Hint {
        name: Box<str> = "name",
    }
}
