//! Flows worth asking about in a cluster: every kind of client to every frontend
//! , and to what is near one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_tests::Family;

use super::cluster::{Cluster, node_ip, outside_ip, pod_ip, vip};

/// A flow, with the place it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub from: IpAddr,
    pub port: u16,
    pub to: SocketAddr,
    pub protocol: &'static str,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Pod,
    Node,
    External,
}

impl Place {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::External => "external",
        }
    }
}

/// The flows of both families.
pub(crate) fn flows(cluster: &Cluster) -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::BOTH {
        for to in destinations(cluster, family) {
            for (number, (from, place)) in (0..).zip(clients(cluster, family, to.ip())) {
                for protocol in ["tcp", "udp", "sctp"] {
                    flows.push(Flow {
                        from,
                        port: 40_000 + number,
                        to,
                        protocol,
                        place,
                    });
                }
            }
        }
    }
    flows
}

fn clients(cluster: &Cluster, family: Family, to: IpAddr) -> Vec<(IpAddr, Place)> {
    let mut clients = vec![
        (pod_ip(family, 0, 200), Place::Pod),
        (node_ip(family, 1, false), Place::Node),
        (node_ip(family, 1, true), Place::Node),
        (outside_ip(family, 7), Place::External),
        (node_ip(family, 2, false), Place::External),
        // A pod of another node whose address is not hidden (S69).
        (pod_ip(family, 1, 200), Place::External),
        // A frontend's own address (S59).
        (to, Place::External),
    ];
    // Endpoints of this node, which may reach themselves (S65).
    let here = cluster.services[0].endpoints(family).iter();
    let here = here.filter(|endpoint| endpoint.node == Some(0)).take(2);
    clients.extend(here.map(|endpoint| (endpoint.ip(family), Place::Pod)));
    clients
}

fn destinations(cluster: &Cluster, family: Family) -> Vec<SocketAddr> {
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let mut destinations = vec![
        SocketAddr::new(outside_ip(family, 99), 80),
        // No Service has it.
        SocketAddr::new(vip(family, 0, 200), 80),
    ];
    for service in &cluster.services {
        for port in [80, 53, 81] {
            let vips = [
                service.cluster_ip(family),
                service.external_ip(family),
                service.ingress_ip(family, 0),
                service.ingress_ip(family, 1),
            ];
            destinations.extend(vips.map(|vip| SocketAddr::new(vip, port)));
        }
        for port in service.ports.iter().filter(|port| port.on_nodes != 0) {
            let nodes = [
                node_ip(family, 1, false),
                node_ip(family, 1, true),
                node_ip(family, 2, false),
                loopback,
            ];
            destinations.extend(nodes.map(|node| SocketAddr::new(node, port.on_nodes)));
        }
    }
    destinations.sort_unstable();
    destinations.dedup();
    destinations
}
