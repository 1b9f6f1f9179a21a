//! Service ports as the agent's planner wants them, from a few words.

use std::{collections::BTreeMap, net::SocketAddr};

use proxy_agent::{
    model::{Cidr, ObjectKey, ServicePortName, address::parse_cidr},
    select::{DesiredFrontend, DesiredPort, EndpointUse, FrontendAddress, FrontendKind, WhenEmpty},
};
use proxy_common::{family::Family, net::Protocol};

use super::Frontend;

/// One Service port of one family.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its cluster IP.
    pub frontend: SocketAddr,
    pub protocol: Protocol,
    /// Other frontends.
    pub others: Vec<Frontend>,
    /// Endpoints that new flows may reach.
    pub endpoints: Vec<SocketAddr>,
    /// Those of `endpoints` that are on this node.
    pub here: Vec<SocketAddr>,
    /// Endpoints that serve, but are for no new flow here.
    pub elsewhere: Vec<SocketAddr>,
    /// Endpoints of which all is said.
    pub uses: BTreeMap<SocketAddr, EndpointUse>,
    /// internalTrafficPolicy: Local.
    pub local: bool,
    /// sessionAffinity: ClientIP, with its timeout in seconds.
    pub affinity: Option<u32>,
    /// Service and port name, if more than the cluster IP and port name it.
    pub name: Option<(String, String)>,
    /// CIDRs of loadBalancerSourceRanges. Each frontend says whether they restrict it.
    pub source_ranges: Vec<String>,
}

impl ServicePort {
    pub fn tcp(frontend: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self::new(Protocol::TCP, frontend, endpoints)
    }

    pub fn udp(frontend: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self::new(Protocol::UDP, frontend, endpoints)
    }

    pub fn sctp(frontend: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self::new(Protocol::SCTP, frontend, endpoints)
    }

    pub fn new(protocol: Protocol, frontend: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self {
            frontend,
            protocol,
            others: Vec::new(),
            endpoints: endpoints.to_vec(),
            here: Vec::new(),
            elsewhere: Vec::new(),
            uses: BTreeMap::new(),
            local: false,
            affinity: None,
            name: None,
            source_ranges: Vec::new(),
        }
    }

    /// With one more frontend.
    #[must_use]
    pub fn with(mut self, other: Frontend) -> Self {
        self.others.push(other);
        self
    }

    /// With these endpoints on this node.
    #[must_use]
    pub fn here(mut self, endpoints: &[SocketAddr]) -> Self {
        self.here.extend(endpoints);
        self
    }

    /// With session affinity that ends after so many idle seconds.
    #[must_use]
    pub fn with_session_affinity(mut self, seconds: u32) -> Self {
        self.affinity = Some(seconds);
        self
    }

    /// With clients that may use its restricted frontends.
    #[must_use]
    pub fn for_clients(mut self, cidr: &str) -> Self {
        self.source_ranges.push(cidr.to_owned());
        self
    }

    /// As the port of that name of a Service, which may have others.
    #[must_use]
    pub fn named(mut self, service: &str, port: &str) -> Self {
        self.name = Some((service.to_owned(), port.to_owned()));
        self
    }

    /// Name of the Service: unless told, one for each cluster IP and port.
    pub fn service(&self) -> ObjectKey {
        if let Some((service, _)) = &self.name {
            return ObjectKey::new("test", service.as_str());
        }
        ObjectKey::new("test", format!("{}-{}", self.frontend, self.protocol))
    }

    /// Returns the desired port, as endpoint selection would hand it to the planner.
    pub fn desired<F: Family>(&self) -> DesiredPort<F> {
        let endpoints = self.endpoint_uses();
        let empty = if endpoints.is_empty() {
            WhenEmpty::Reject
        } else {
            WhenEmpty::Drop
        };
        let (ip, port) = address::<F>(self.frontend);
        let cluster_ip = DesiredFrontend {
            local_set: self.local,
            ..DesiredFrontend::new(FrontendKind::ClusterIp, ip, port)
        };
        let others = self.others.iter().map(Frontend::desired);
        DesiredPort {
            name: ServicePortName {
                service: self.service(),
                port: self.name.as_ref().map_or("", |(_, port)| port).into(),
                protocol: self.protocol,
            },
            frontends: std::iter::once(cluster_ip).chain(others).collect(),
            endpoints: endpoints
                .into_iter()
                .map(|(endpoint, used)| (address::<F>(endpoint), used))
                .collect(),
            affinity: self.affinity,
            source_ranges: self.source_ranges.iter().map(|raw| cidr(raw)).collect(),
            cluster_empty: empty,
            local_empty: empty,
        }
    }

    fn endpoint_uses(&self) -> BTreeMap<SocketAddr, EndpointUse> {
        let cluster = !self.local || !self.others.is_empty();
        let local = self.local || self.others.iter().any(|other| other.local);
        let reachable = self.endpoints.iter().map(|endpoint| (endpoint, true));
        let elsewhere = self.elsewhere.iter().map(|endpoint| (endpoint, false));
        let mut uses: BTreeMap<_, _> = reachable
            .chain(elsewhere)
            .map(|(endpoint, reachable)| {
                let here = self.here.contains(endpoint);
                let used = EndpointUse {
                    serving: true,
                    here,
                    cluster: reachable && cluster,
                    local: reachable && local && here,
                };
                (*endpoint, used)
            })
            .collect();
        uses.extend(&self.uses);
        uses
    }
}

impl Frontend {
    fn desired<F: Family>(&self) -> DesiredFrontend<F> {
        let ip = self.ip.map(|ip| F::from_ip(ip).expect("of the family"));
        DesiredFrontend {
            address: ip.map_or(FrontendAddress::AnyNode, FrontendAddress::Ip),
            port: self.port,
            kind: self.kind,
            local_set: self.local,
            restricted: self.restricted,
            allow_itself: self.allow_itself,
        }
    }
}

fn address<F: Family>(address: SocketAddr) -> (F::Ip, u16) {
    let ip = F::from_ip(address.ip()).expect("an address of the family");
    (ip, address.port())
}

fn cidr<F: Family>(raw: &str) -> Cidr<F> {
    let net = parse_cidr(raw).expect("a CIDR");
    Cidr::of(net).expect("a CIDR of the family")
}
