//! A cluster as a few plain facts, generated, and as the API objects that say
//! the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, option, prelude::*, sample::select};
use proxy_tests::Family;
use serde_json::{Value, json};

/// Names of the nodes; the first one asks.
pub(crate) const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
const ZONES: [&str; 2] = ["zone-1", "zone-2"];
/// Values of `--nodeport-addresses`.
const NODE_PORT_ADDRESSES: [&str; 4] = ["", "primary", "localhost", "192.168.2.0/24"];

/// The node's settings, and the objects of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub zone: Option<&'static str>,
    /// Families with a cluster CIDR.
    pub detector: Vec<Family>,
    pub masquerade_all: bool,
    pub node_port_addresses: &'static str,
    /// There is a ServiceCIDR that has all cluster IPs, of both families.
    pub service_cidr: bool,
    pub services: Vec<Service>,
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub number: u8,
    pub kind: &'static str,
    /// Families with a cluster IP, the first one first.
    pub families: Vec<Family>,
    pub other_proxy: bool,
    pub internal_policy: Option<&'static str>,
    pub external_policy: Option<&'static str>,
    pub ports: Vec<Port>,
    pub external_ips: bool,
    /// Entries of status.loadBalancer.ingress with an address, and their
    /// ipMode.
    pub ingress: Vec<Option<&'static str>>,
    pub source_ranges: Vec<&'static str>,
    pub session_affinity: bool,
    /// The endpoints of each family.
    pub endpoints: [Vec<Endpoint>; 2],
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub name: &'static str,
    pub protocol: &'static str,
    pub number: u16,
    /// Its NodePort; 0: none.
    pub on_nodes: u16,
}

#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub number: u8,
    pub node: Option<usize>,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub zone_hints: Vec<&'static str>,
    pub node_hints: Vec<&'static str>,
    /// The slice it is in, of two; they differ in port numbers.
    pub slice: u8,
}

/// An address in both families.
pub(crate) fn ip(family: Family, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(v4).into(),
        Family::V6 => Ipv6Addr::from(v6).into(),
    }
}

/// An address of a node: each has two, and only the first one is in its Node
/// object's first place.
pub(crate) fn node_ip(family: Family, node: u8, second: bool) -> IpAddr {
    let net = 1 + u8::from(second);
    let v6 = [0xfd00, 0x192, net.into(), 0, 0, 0, 0, node.into()];
    ip(family, [192, 168, net, node], v6)
}

pub(crate) fn pod_ip(family: Family, node: u8, number: u8) -> IpAddr {
    let v6 = [0xfd00, 0x244, node.into(), 0, 0, 0, 0, number.into()];
    ip(family, [10, 244, node, number], v6)
}

pub(crate) fn outside_ip(family: Family, number: u8) -> IpAddr {
    let v6 = [0xfd00, 0x198, 0, 0, 0, 0, 0, number.into()];
    ip(family, [198, 51, 100, number], v6)
}

/// An address for frontends; those of net 0 are cluster IPs.
pub(crate) fn vip(family: Family, net: u8, number: u8) -> IpAddr {
    let v6 = [0xfd00, 0x96, net.into(), 0, 0, 0, 0, number.into()];
    ip(family, [10, 96, net, number], v6)
}

impl Service {
    pub(crate) fn name(&self) -> String {
        format!("svc-{}", self.number)
    }

    pub(crate) fn cluster_ip(&self, family: Family) -> IpAddr {
        vip(family, 0, self.number)
    }

    pub(crate) fn external_ip(&self, family: Family) -> IpAddr {
        vip(family, 1, self.number)
    }

    pub(crate) fn ingress_ip(&self, family: Family, index: usize) -> IpAddr {
        let net = 2 + u8::try_from(index).expect("few");
        vip(family, net, self.number)
    }

    pub(crate) fn endpoints(&self, family: Family) -> &[Endpoint] {
        &self.endpoints[usize::from(family == Family::V6)]
    }

    fn objects(&self) -> Vec<Value> {
        let headless = self.kind == "Headless";
        let cluster_ips: Vec<_> = if headless {
            vec!["None".to_owned()]
        } else {
            let ips = self.families.iter().map(|family| self.cluster_ip(*family));
            ips.map(|ip| ip.to_string()).collect()
        };
        let both = Family::BOTH;
        let external_ips: Vec<_> = both
            .iter()
            .filter(|_| self.external_ips)
            .map(|family| self.external_ip(*family).to_string())
            .collect();
        let ingress: Vec<_> = self
            .ingress
            .iter()
            .enumerate()
            .flat_map(|(index, mode)| {
                both.map(|family| json!({"ip": self.ingress_ip(family, index), "ipMode": mode}))
            })
            .chain([json!({"hostname": "lb.example.com"})])
            .collect();
        let labels = if self.other_proxy {
            json!({"service.kubernetes.io/service-proxy-name": ""})
        } else {
            json!({})
        };
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "test", "name": self.name(), "labels": labels},
            "spec": {
                "type": if headless { "ClusterIP" } else { self.kind },
                "clusterIP": cluster_ips[0],
                "clusterIPs": cluster_ips,
                "ipFamilies": self.families.iter().map(|f| f.api_name()).collect::<Vec<_>>(),
                "internalTrafficPolicy": self.internal_policy,
                "externalTrafficPolicy": self.external_policy,
                "externalIPs": external_ips,
                "loadBalancerSourceRanges": self.source_ranges,
                "sessionAffinity": if self.session_affinity { "ClientIP" } else { "None" },
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
                "ports": self.ports.iter().map(|port| json!({
                    "name": port.name,
                    "protocol": port.protocol,
                    "port": port.number,
                    "nodePort": port.on_nodes,
                })).collect::<Vec<_>>(),
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let slices = both
            .into_iter()
            .flat_map(|family| [0, 1].map(|slice| self.slice(family, slice)));
        std::iter::once(service).chain(slices).collect()
    }

    fn slice(&self, family: Family, slice: u8) -> Value {
        let endpoints = self.endpoints(family).iter().filter(|e| e.slice == slice);
        let name = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| json!({"name": name})).collect()
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "test",
                "name": format!("{}-{}-{slice}", self.name(), family.api_name()),
                "labels": {"kubernetes.io/service-name": self.name()},
            },
            "addressType": family.api_name(),
            "ports": self.ports.iter().map(|port| json!({
                "name": port.name,
                "protocol": port.protocol,
                "port": target_port(port, slice),
            })).collect::<Vec<_>>(),
            "endpoints": endpoints.map(|endpoint| json!({
                "addresses": [endpoint.ip(family)],
                "nodeName": endpoint.node.map(|node| NODES[node]),
                "conditions": {
                    "ready": endpoint.ready,
                    "serving": endpoint.serving,
                    "terminating": endpoint.terminating,
                },
                "hints": {
                    "forZones": name(&endpoint.zone_hints),
                    "forNodes": name(&endpoint.node_hints),
                },
            })).collect::<Vec<_>>(),
        })
    }
}

impl Endpoint {
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        let node = self.node.map_or(9, |node| u8::try_from(node).expect("few"));
        pod_ip(family, node, self.number)
    }
}

/// The number that a port has in a slice.
pub(crate) fn target_port(port: &Port, slice: u8) -> u16 {
    port.number + 8000 + u16::from(slice)
}

impl Cluster {
    /// The API objects that say the same, in a list.
    pub(crate) fn manifest(&self) -> String {
        let addresses: Vec<_> = [false, true]
            .into_iter()
            .flat_map(|second| {
                Family::BOTH.map(
                    |family| json!({"type": "InternalIP", "address": node_ip(family, 1, second)}),
                )
            })
            .collect();
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": NODES[0],
                "labels": {"topology.kubernetes.io/zone": self.zone.unwrap_or_default()},
            },
            "status": {"addresses": addresses},
        });
        let service_cidr = self.service_cidr.then(|| {
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": ["10.96.0.0/24", "fd00:96::/48"]},
            })
        });
        let services = self.services.iter().flat_map(Service::objects);
        let items: Vec<_> = std::iter::once(node)
            .chain(service_cidr)
            .chain(services)
            .collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }
}

/// Any cluster.
pub(crate) fn cluster() -> impl Strategy<Value = Cluster> {
    (
        option::weighted(0.8, select(&ZONES[..])),
        families(0),
        any::<bool>(),
        select(&NODE_PORT_ADDRESSES[..]),
        any::<bool>(),
        vec(service(), 1..4),
    )
        .prop_map(
            |(zone, detector, masquerade_all, node_port_addresses, service_cidr, mut services)| {
                for (number, service) in (1..).zip(&mut services) {
                    service.number = number;
                    for port in &mut service.ports {
                        if port.on_nodes != 0 {
                            port.on_nodes += u16::from(number) * 100;
                        }
                    }
                }
                Cluster {
                    zone,
                    detector,
                    masquerade_all,
                    node_port_addresses,
                    service_cidr,
                    services,
                }
            },
        )
}

/// Some of the families in some order, at least so many.
fn families(least: usize) -> impl Strategy<Value = Vec<Family>> {
    use Family::{V4, V6};
    let all = vec![vec![], vec![V4], vec![V6], vec![V4, V6], vec![V6, V4]];
    select(all).prop_filter("enough", move |families| families.len() >= least)
}

fn service() -> impl Strategy<Value = Service> {
    let kinds = select(vec![
        "ClusterIP",
        "ClusterIP",
        "NodePort",
        "NodePort",
        "LoadBalancer",
        "LoadBalancer",
        "ExternalName",
        "Headless",
    ]);
    let policies = (policy(), policy());
    let ranges = select(vec![
        vec![],
        vec!["198.51.100.0/24"],
        vec!["10.244.0.0/16", "fd00:198::/32"],
        vec!["192.168.1.0/24", "fd00:192:1::/48"],
        vec!["198.51.100.0/24", "0.0.0.0/0"],
    ]);
    let ingress = vec(select(vec![None, Some("VIP"), Some("Proxy")]), 0..3);
    (
        (kinds, families(1), prop::bool::weighted(0.05)),
        policies,
        prop::sample::subsequence(ports(), 1..=4),
        (any::<bool>(), ingress, ranges, any::<bool>()),
        [endpoints(), endpoints()],
    )
        .prop_map(
            |(
                (kind, families, other_proxy),
                (internal_policy, external_policy),
                mut ports,
                (external_ips, ingress, source_ranges, session_affinity),
                endpoints,
            )| {
                if !["NodePort", "LoadBalancer"].contains(&kind) {
                    for port in &mut ports {
                        port.on_nodes = 0;
                    }
                }
                Service {
                    number: 0,
                    kind,
                    families,
                    other_proxy,
                    internal_policy,
                    external_policy,
                    ports,
                    external_ips,
                    ingress,
                    source_ranges,
                    session_affinity,
                    endpoints,
                }
            },
        )
}

fn policy() -> impl Strategy<Value = Option<&'static str>> {
    select(vec![None, Some("Cluster"), Some("Local"), Some("Local")])
}

/// One number with two protocols, and a port without NodePort.
fn ports() -> Vec<Port> {
    let port = |name, protocol, number, on_nodes| Port {
        name,
        protocol,
        number,
        on_nodes,
    };
    vec![
        port("http", "TCP", 80, 30_080),
        port("quic", "UDP", 80, 30_080),
        port("dns", "UDP", 53, 0),
        port("diameter", "SCTP", 80, 30_080),
    ]
}

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    vec(endpoint(), 0..6).prop_map(|mut endpoints| {
        for (number, endpoint) in (1..).zip(&mut endpoints) {
            endpoint.number = number;
        }
        endpoints
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let yes_or_no = || option::of(any::<bool>());
    // Mostly all or none: one without a hint switches topology off.
    let hints = |all: &'static [&'static str]| {
        prop_oneof![
            1 => Just(Vec::new()),
            6 => select(all).prop_map(|name| vec![name]),
            1 => Just(all.to_vec()),
        ]
    };
    (
        option::weighted(0.9, 0..NODES.len()),
        (yes_or_no(), yes_or_no(), yes_or_no()),
        hints(&ZONES),
        hints(&NODES),
        0..2u8,
    )
        .prop_map(
            |(node, (ready, serving, terminating), zone_hints, node_hints, slice)| Endpoint {
                number: 0,
                node,
                ready,
                serving,
                terminating,
                zone_hints,
                node_hints,
                slice,
            },
        )
}
