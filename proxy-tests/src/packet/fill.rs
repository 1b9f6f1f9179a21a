//! Service ports as the agent's planner wants them, from a few words.

use std::{collections::BTreeMap, net::SocketAddr};

use proxy_agent::{
    model::{ObjectKey, ServicePortName},
    select::{DesiredFrontend, DesiredPort, EndpointUse, WhenEmpty},
};
use proxy_common::{family::Family, net::Protocol};

/// One Service port of one family.
#[derive(Clone, Debug)]
pub struct ServicePort {
    pub front_end: SocketAddr,
    pub protocol: Protocol,
    /// Endpoints that new flows may reach.
    pub endpoints: Vec<SocketAddr>,
    /// Endpoints that serve, but are for no new flow here.
    pub elsewhere: Vec<SocketAddr>,
    /// internalTrafficPolicy: Local.
    pub local: bool,
}

impl ServicePort {
    pub fn tcp(front_end: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self::new(Protocol::TCP, front_end, endpoints)
    }

    pub fn udp(front_end: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self::new(Protocol::UDP, front_end, endpoints)
    }

    pub fn new(protocol: Protocol, front_end: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self {
            front_end,
            protocol,
            endpoints: endpoints.to_vec(),
            elsewhere: Vec::new(),
            local: false,
        }
    }

    /// Name of the Service: one for each front end.
    pub fn service(&self) -> ObjectKey {
        ObjectKey {
            namespace: "test".to_owned(),
            name: format!("{}-{}", self.front_end, self.protocol),
        }
    }

    /// What the planner is to make of it.
    pub fn desired<F: Family>(&self) -> DesiredPort<F> {
        let address = |address: &SocketAddr| {
            let ip = F::from_ip(address.ip()).expect("an address of the family");
            (ip, address.port())
        };
        let here = self.endpoints.iter().map(|endpoint| (endpoint, true));
        let elsewhere = self.elsewhere.iter().map(|endpoint| (endpoint, false));
        let endpoints: BTreeMap<_, _> = here
            .chain(elsewhere)
            .map(|(endpoint, here)| {
                let endpoint_use = EndpointUse {
                    serving: true,
                    cluster: here && !self.local,
                    local: here && self.local,
                };
                (address(endpoint), endpoint_use)
            })
            .collect();
        let empty = if endpoints.is_empty() {
            WhenEmpty::Reject
        } else {
            WhenEmpty::Drop
        };
        let (ip, port) = address(&self.front_end);
        DesiredPort {
            name: ServicePortName {
                service: self.service(),
                port: String::new(),
                protocol: self.protocol,
            },
            frontends: vec![DesiredFrontend {
                ip,
                port,
                local_set: self.local,
            }],
            endpoints,
            cluster_empty: empty,
            local_empty: empty,
        }
    }
}
