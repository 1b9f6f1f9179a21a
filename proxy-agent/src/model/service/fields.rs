//! The fields of a Service that are read.

use k8s_openapi::api::core::v1::Service;

use crate::model::api::{List, Metadata, api_fields};

api_fields! {
    pub struct ServiceFields for Service {
        metadata: Metadata = "metadata",
        spec: Spec = "spec",
        status: Status = "status",
    }

    pub struct Spec {
        kind: Box<str> = "type",
        cluster_ip: Box<str> = "clusterIP",
        cluster_ips: List<Box<str>> = "clusterIPs",
        ip_families: List<Box<str>> = "ipFamilies",
        ports: List<PortFields> = "ports",
        external_ips: List<Box<str>> = "externalIPs",
        source_ranges: List<Box<str>> = "loadBalancerSourceRanges",
        internal_policy: Box<str> = "internalTrafficPolicy",
        external_policy: Box<str> = "externalTrafficPolicy",
        health_check_port: i64 = "healthCheckNodePort",
        affinity: Box<str> = "sessionAffinity",
        affinity_config: AffinityConfig = "sessionAffinityConfig",
    }

    pub struct PortFields {
        name: Box<str> = "name",
        protocol: Box<str> = "protocol",
        port: i64 = "port",
        node_port: i64 = "nodePort",
    }

    pub struct AffinityConfig {
        client_ip: ClientIp = "clientIP",
    }

    pub struct ClientIp {
        timeout_seconds: i64 = "timeoutSeconds",
    }

    pub struct Status {
        load_balancer: LoadBalancer = "loadBalancer",
    }

    pub struct LoadBalancer {
        ingress: List<Ingress> = "ingress",
    }

    pub struct Ingress {
        ip: Box<str> = "ip",
        ip_mode: Box<str> = "ipMode",
    }
}
