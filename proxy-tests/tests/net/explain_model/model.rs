//! A model of the treatment of new flows, straight from the rules S1–S70, with no regard
//! to how long it takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proxy_common::explain::Masquerade;
use proxy_tests::Family;

use super::{
    cluster::{Cluster, Endpoint, NODES, Port, Service, node_ip, target_port, vip},
    flows::{Flow, Place},
};

/// The right treatment of a flow.
#[derive(Debug)]
pub(crate) struct Expected {
    pub verdict: &'static str,
    pub service: Option<String>,
    pub frontend: Option<&'static str>,
    pub endpoints: BTreeSet<String>,
    /// Whose address each of them sees, and why.
    pub masquerade: BTreeMap<String, Masquerade>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Pod,
    Host,
    External,
}

/// The destination of a flow.
struct Destination<'a> {
    service: &'a Service,
    port: &'a Port,
    kind: &'static str,
}

pub(crate) fn expect(cluster: &Cluster, flow: &Flow) -> Expected {
    let nothing = |verdict| Expected {
        verdict,
        service: None,
        frontend: None,
        endpoints: BTreeSet::new(),
        masquerade: BTreeMap::new(),
    };
    let family = Family::of(flow.to.ip());
    let Some(destination) = destination(cluster, flow, family) else {
        return nothing(without_port(cluster, flow.to.ip(), family));
    };
    let Destination {
        service,
        port,
        kind,
    } = destination;
    let refused = |verdict| Expected {
        service: Some(format!("test/{}:{}", service.name(), port.name)),
        frontend: Some(kind),
        ..nothing(verdict)
    };
    // S56: what others send there never leaves them.
    if flow.to.ip().is_loopback() && flow.place != Place::Node {
        return refused("pass");
    }
    // By the loopback device, and calls of SCTP have no hooks.
    if flow.protocol == "sctp" && flow.place == Place::Node && is_own(flow.to.ip(), family) {
        return refused("pass");
    }
    // S58: before anything is said of endpoints.
    if kind == "LoadBalancer" && !is_admitted(service, flow, family) {
        return refused("drop");
    }
    let client = client(cluster, flow, family);
    let all = service.endpoints(family);
    // No usable endpoint: what that means depends on the path (S36, S43).
    if !all.iter().any(|e| is_ready(e) || is_last_resort(e)) {
        return refused("reject");
    }
    let is_local_policy = if kind == "ClusterIP" {
        service.internal_policy == Some("Local")
    } else {
        is_external_local(service)
    };
    // S39: cluster IPs exempt nobody, the others pods and this node.
    let exempt = kind != "ClusterIP" && client != Client::External;
    let chosen_from = if is_local_policy && !exempt {
        local_set(all)
    } else {
        cluster_set(all, cluster)
    };
    if chosen_from.is_empty() {
        return refused("drop");
    }
    let name = |e: &Endpoint| {
        let address = (e.ip(family), target_port(port, e.slice));
        std::net::SocketAddr::from(address).to_string()
    };
    let masquerade = |endpoint: &Endpoint| {
        if endpoint.ip(family) == flow.from {
            return Masquerade::Itself; // S65
        }
        if flow.place == Place::Node {
            return Masquerade::Host; // S39, E5
        }
        if kind == "ClusterIP" {
            // Traffic to cluster IPs is masqueraded (S63).
            return match (cluster.masquerade_all, cluster.detector.contains(&family)) {
                (true, _) => Masquerade::All,
                (false, false) => Masquerade::NoDetector,
                (false, true) if client == Client::Pod => Masquerade::Pod,
                (false, true) => Masquerade::NotPod,
            };
        }
        // S39
        match client {
            Client::Host => return Masquerade::Host,
            Client::External if is_local_policy => return Masquerade::LocalPolicy,
            _ => {}
        }
        // S64 and S69, but the source stays where the replies come here anyway.
        match (flow.place, is_here(endpoint)) {
            (Place::Pod, _) => Masquerade::ClientIsHere,
            (_, true) => Masquerade::BackendIsHere,
            (_, false) => Masquerade::BackendElsewhere,
        }
    };
    let masquerade = chosen_from.iter().map(|e| (name(e), masquerade(e)));
    Expected {
        endpoints: chosen_from.iter().map(|e| name(e)).collect(),
        masquerade: masquerade.collect(),
        ..refused("forward")
    }
}

/// S2–S4: Services that have anything in a family.
fn served(cluster: &Cluster, family: Family) -> impl Iterator<Item = &Service> {
    cluster.services.iter().filter(move |service| {
        !service.other_proxy
            && !["ExternalName", "Headless"].contains(&service.kind)
            && service.families.contains(&family)
    })
}

/// The addresses of a Service besides NodePorts, and what each is (S7, S8).
fn vips(service: &Service, family: Family) -> Vec<(IpAddr, &'static str)> {
    let mut vips = vec![(service.cluster_ip(family), "ClusterIP")];
    if service.external_ips {
        vips.push((service.external_ip(family), "ExternalIP"));
    }
    for (index, mode) in service.ingress.iter().enumerate() {
        if mode.is_none() || *mode == Some("VIP") {
            vips.push((service.ingress_ip(family, index), "LoadBalancer"));
        }
    }
    vips
}

/// Returns the verdict for a port that no Service has on that address.
fn without_port(cluster: &Cluster, ip: IpAddr, family: Family) -> &'static str {
    let vips: Vec<_> = served(cluster, family)
        .flat_map(|service| vips(service, family))
        .collect();
    let kind = vips.iter().find(|vip| vip.0 == ip).map(|vip| vip.1);
    let in_service_cidr = (0..=u8::MAX).any(|number| vip(family, 0, number) == ip);
    match kind {
        // S46, and for load balancers' addresses so that nothing runs in
        // circles.
        Some("ClusterIP" | "LoadBalancer") => "reject",
        // Addresses for cluster IPs that no Service has (S47).
        None if cluster.service_cidr && in_service_cidr => "drop",
        // Ports that no Service has at an external address (S48).
        _ => "pass",
    }
}

/// S51: the addresses first, then NodePorts.
fn destination<'a>(cluster: &'a Cluster, flow: &Flow, family: Family) -> Option<Destination<'a>> {
    let protocol = flow.protocol.to_uppercase();
    for service in served(cluster, family) {
        for (ip, kind) in vips(service, family) {
            for port in &service.ports {
                if ip == flow.to.ip() && port.number == flow.to.port() && port.protocol == protocol
                {
                    return Some(Destination {
                        service,
                        port,
                        kind,
                    });
                }
            }
        }
    }
    if !takes_node_ports(cluster, flow.to.ip(), family) {
        return None;
    }
    for service in served(cluster, family) {
        for port in &service.ports {
            if port.on_nodes == flow.to.port() && port.protocol == protocol {
                return Some(Destination {
                    service,
                    port,
                    kind: "NodePort",
                });
            }
        }
    }
    None
}

/// Returns whether NodePorts are served at the address (S52–S54).
fn takes_node_ports(cluster: &Cluster, ip: IpAddr, family: Family) -> bool {
    let first = ip == node_ip(family, 1, false);
    let second = ip == node_ip(family, 1, true);
    match cluster.node_port_addresses {
        "primary" => first,
        "localhost" => ip.is_loopback(),
        "192.168.2.0/24" if family == Family::V4 => second,
        _ => first || second || ip.is_loopback(),
    }
}

/// Tells what kind of client it is (S39, S41, S68).
fn client(cluster: &Cluster, flow: &Flow, family: Family) -> Client {
    if flow.place == Place::Node || is_own(flow.from, family) {
        return Client::Host;
    }
    let is_pod = match flow.from {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 244],
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x244],
    };
    if is_pod && cluster.detector.contains(&family) {
        Client::Pod
    } else {
        Client::External
    }
}

fn is_own(ip: IpAddr, family: Family) -> bool {
    ip == node_ip(family, 1, false) || ip == node_ip(family, 1, true) || ip.is_loopback()
}

/// Returns whether source ranges let the client in (S9, S58, S59).
fn is_admitted(service: &Service, flow: &Flow, family: Family) -> bool {
    let ranges: Vec<ipnet::IpNet> = service
        .source_ranges
        .iter()
        .map(|range| range.parse().expect("a CIDR"))
        .filter(|range: &ipnet::IpNet| Family::of(range.addr()) == family)
        .collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return true;
    }
    let allows = |ip| ranges.iter().any(|range| range.contains(&ip));
    allows(flow.from) || flow.from == flow.to.ip() && allows(node_ip(family, 1, false))
}

/// Returns whether the external policy is Local, which counts only where there is
/// external traffic (S10).
fn is_external_local(service: &Service) -> bool {
    service.external_policy == Some("Local")
        && (service.kind != "ClusterIP" || service.external_ips)
}

/// Returns whether the endpoint is ready, as it is if nothing is said (S19).
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.ready.unwrap_or(true)
}

fn is_last_resort(endpoint: &Endpoint) -> bool {
    endpoint.serving.unwrap_or(true) && endpoint.terminating.unwrap_or(false)
}

/// Returns whether the endpoint is on this node (S21).
fn is_here(endpoint: &Endpoint) -> bool {
    endpoint.node.map(|node| NODES[node]) == Some(NODES[0])
}

/// Endpoints that any node may use: by hints, else all ready ones, else terminating
/// ones that serve (S32, S34).
fn cluster_set<'a>(all: &'a [Endpoint], cluster: &Cluster) -> Vec<&'a Endpoint> {
    let ready: Vec<_> = all.iter().filter(|e| is_ready(e)).collect();
    if ready.is_empty() {
        return all.iter().filter(|e| is_last_resort(e)).collect();
    }
    let for_node: Vec<_> = ready
        .iter()
        .copied()
        .filter(|e| e.node_hints.contains(&NODES[0]))
        .collect();
    if ready.iter().all(|e| !e.node_hints.is_empty()) && !for_node.is_empty() {
        return for_node;
    }
    let for_zone: Vec<_> = ready
        .iter()
        .copied()
        .filter(|e| {
            cluster
                .zone
                .is_some_and(|zone| e.zone_hints.contains(&zone))
        })
        .collect();
    if ready.iter().all(|e| !e.zone_hints.is_empty()) && !for_zone.is_empty() {
        return for_zone;
    }
    ready
}

/// Endpoints of this node: ready ones, else terminating ones that serve (S33).
fn local_set(all: &[Endpoint]) -> Vec<&Endpoint> {
    let here: Vec<_> = all.iter().filter(|e| is_here(e)).collect();
    let ready: Vec<_> = here.iter().copied().filter(|e| is_ready(e)).collect();
    if ready.is_empty() {
        here.into_iter().filter(|e| is_last_resort(e)).collect()
    } else {
        ready
    }
}
