//! A Service and its EndpointSlices.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::Endpoint;
use crate::{
    addressing::cluster_ip,
    family::{Families, Family},
    host::Addresses,
};

/// A Service, dual-stack and of type ClusterIP unless told otherwise, with the
/// endpoints behind it.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    number: u8,
    families: Families,
    ports: Vec<ServicePort>,
    endpoints: Vec<Endpoint>,
    patches: Vec<(String, Value)>,
}

#[derive(Clone, Debug)]
struct ServicePort {
    name: String,
    protocol: &'static str,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Cluster,
    Local,
}

impl Policy {
    fn api_name(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// The port of the Service [`Service::echo`], TCP and UDP.
pub const ECHO_PORT: u16 = 80;
/// The port of the pods behind it.
pub const ECHO_TARGET: u16 = 8080;

impl Service {
    /// The Service most tests use: `echo`, TCP and UDP.
    pub fn echo(families: Families) -> Self {
        Self::echo_as("echo", 1, families)
    }

    /// The same Service by another name and with other addresses.
    pub fn echo_as(name: &str, number: u8, families: Families) -> Self {
        Self::new(name, number, families)
            .tcp(ECHO_PORT, ECHO_TARGET)
            .udp(ECHO_PORT, ECHO_TARGET)
    }

    /// A Service in the namespace `default`; `number` makes its cluster IPs.
    pub fn new(name: &str, number: u8, families: Families) -> Self {
        Self {
            name: name.to_owned(),
            number,
            families,
            ports: Vec::new(),
            endpoints: Vec::new(),
            patches: Vec::new(),
        }
    }

    /// Adds a TCP port and the port of the pods behind it.
    #[must_use]
    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target)
    }

    /// Adds a UDP port and the port of the pods behind it.
    #[must_use]
    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port("UDP", port, target)
    }

    /// Adds an SCTP port and the port of the pods behind it.
    #[must_use]
    pub fn sctp(self, port: u16, target: u16) -> Self {
        self.port("SCTP", port, target)
    }

    fn port(mut self, protocol: &'static str, port: u16, target: u16) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        self.ports.push(ServicePort {
            name,
            protocol,
            port,
            target,
            node_port: None,
        });
        self
    }

    /// Gives `port` a NodePort, in each protocol it has, and the Service the
    /// type NodePort.
    #[must_use]
    pub fn node_port(mut self, port: u16, node_port: u16) -> Self {
        let ports = self.ports.iter_mut().filter(|each| each.port == port);
        ports.for_each(|each| each.node_port = Some(node_port));
        self.with("/spec/type", json!("NodePort"))
    }

    /// Sets the external IPs.
    #[must_use]
    pub fn external_ips(self, addresses: Addresses) -> Self {
        self.with("/spec/externalIPs", json!(addresses.list()))
    }

    /// Makes it a load balancer with these addresses, whose packets arrive
    /// (`VIP`) or do not (`Proxy`) with that destination.
    #[must_use]
    pub fn load_balancer(self, addresses: Addresses, ip_mode: &str) -> Self {
        let addresses = addresses.list().into_iter();
        let ingress: Vec<_> = addresses
            .map(|address| json!({ "ip": address, "ipMode": ip_mode }))
            .collect();
        self.with("/spec/type", json!("LoadBalancer"))
            .with("/status/loadBalancer/ingress", json!(ingress))
    }

    /// Sets who may use its load balancer.
    #[must_use]
    pub fn source_ranges(self, ranges: &[String]) -> Self {
        self.with("/spec/loadBalancerSourceRanges", json!(ranges))
    }

    /// Sets the externalTrafficPolicy.
    #[must_use]
    pub fn external_policy(self, policy: Policy) -> Self {
        self.with("/spec/externalTrafficPolicy", json!(policy.api_name()))
    }

    /// Sets the internalTrafficPolicy.
    #[must_use]
    pub fn internal_policy(self, policy: Policy) -> Self {
        self.with("/spec/internalTrafficPolicy", json!(policy.api_name()))
    }

    /// A client stays with one endpoint until it has not connected for so many
    /// seconds.
    #[must_use]
    pub fn client_ip_affinity(self, seconds: u32) -> Self {
        let timeout = json!({ "clientIP": { "timeoutSeconds": seconds } });
        self.with("/spec/sessionAffinity", json!("ClientIP"))
            .with("/spec/sessionAffinityConfig", timeout)
    }

    /// Adds a pod, or a node as host-network endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds several.
    #[must_use]
    pub fn endpoints<E: Into<Endpoint>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// The same Service without endpoints.
    #[must_use]
    pub fn without_endpoints(mut self) -> Self {
        self.endpoints.clear();
        self
    }

    /// Sets a field of the Service object, named by its JSON pointer
    /// (`/spec/sessionAffinity`).
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        self.patches.push((pointer.to_owned(), value));
        self
    }

    /// Its name, also that of its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cluster IP.
    pub fn cluster_ip(&self, family: Family) -> IpAddr {
        cluster_ip(family, self.number)
    }

    /// A frontend of it.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster_ip(family), port)
    }

    /// The Service and its slices.
    pub fn objects(&self) -> Vec<Value> {
        let slices = self
            .families
            .list()
            .iter()
            .map(|&family| self.slice(family));
        [self.service()].into_iter().chain(slices).collect()
    }

    fn service(&self) -> Value {
        let families = self.families.list();
        let cluster_ips: Vec<_> = families
            .iter()
            .map(|&family| self.cluster_ip(family).to_string())
            .collect();
        let names: Vec<_> = families.iter().map(|family| family.api_name()).collect();
        let policy = if families.len() == 2 {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|port| {
                let mut object = json!({
                    "name": port.name,
                    "port": port.port,
                    "protocol": port.protocol,
                    "targetPort": port.target,
                });
                if let Some(node_port) = port.node_port {
                    object["nodePort"] = json!(node_port);
                }
                object
            })
            .collect();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": {
                "clusterIP": cluster_ips[0],
                "clusterIPs": cluster_ips,
                "internalTrafficPolicy": "Cluster",
                "ipFamilies": names,
                "ipFamilyPolicy": policy,
                "ports": ports,
                "selector": { "app": self.name },
                "sessionAffinity": "None",
                "type": "ClusterIP",
            },
            "status": { "loadBalancer": {} },
        });
        for (pointer, value) in &self.patches {
            let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
            if let Some(parent) = object.pointer_mut(parent) {
                parent[field] = value.clone();
            }
        }
        object
    }

    fn slice(&self, family: Family) -> Value {
        let endpoints: Vec<_> = self
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let address = endpoint.addresses.get(family)?;
                Some(endpoint.object(address))
            })
            .collect();
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(
                |port| json!({ "name": port.name, "port": port.target, "protocol": port.protocol }),
            )
            .collect();
        json!({
            "addressType": family.api_name(),
            "apiVersion": "discovery.k8s.io/v1",
            "endpoints": endpoints,
            "kind": "EndpointSlice",
            "metadata": {
                "labels": {
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": self.name,
                },
                "name": format!("{}-{}", self.name, family.api_name().to_lowercase()),
                "namespace": "default",
            },
            "ports": ports,
        })
    }
}
