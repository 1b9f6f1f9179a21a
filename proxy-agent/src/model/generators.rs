//! Generated domain objects, for tests. Names and addresses are few, so that
//! objects meet: slices share a Service, endpoints share an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};
use proxy_common::net::Protocol;

use super::{
    Endpoint, EndpointSlice, FamilyIps, IpFamily, Node, ObjectKey, Placement, Service, ServicePort,
    endpoint_slice::EndpointPort,
};

/// The node that stands for "this node" in tests.
pub const THIS_NODE: &str = "node-0";

pub fn service_key() -> impl Strategy<Value = ObjectKey> {
    ("[ab]", "[xyz]").prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

pub fn service() -> impl Strategy<Value = Service> {
    let policies = any::<[bool; 2]>();
    (
        service_key(),
        (option::of(0..4u8), option::of(0..4u16)),
        // Some are the cluster IP.
        (btree_set(ip(), 0..3), btree_set(ip(), 0..3)),
        proptest::sample::subsequence(RANGES.to_vec(), 0..=3),
        policies,
        option::of(1..4u32),
        ports(),
    )
        .prop_map(
            |(key, (v4, v6), (external, balancer), ranges, policies, affinity, ports)| Service {
                key,
                cluster_ips: FamilyIps {
                    v4: v4.map(|n| Ipv4Addr::new(10, 96, 0, n)),
                    v6: v6.map(|n| Ipv6Addr::new(0xfd00, 96, 0, 0, 0, 0, 0, n)),
                },
                external_ips: external.into_iter().collect(),
                load_balancer_ips: balancer.into_iter().collect(),
                source_ranges: ranges
                    .into_iter()
                    .map(|range| range.parse().expect("a CIDR"))
                    .collect(),
                unusable_source_ranges: false,
                internal_local: policies[0],
                external_local: policies[1],
                affinity,
                health_check_port: None,
                ports,
            },
        )
}

/// Source ranges: two of each family, one of them everyone.
const RANGES: [&str; 4] = ["0.0.0.0/0", "192.168.0.0/24", "::/0", "fd00:192::/32"];

fn ip() -> impl Strategy<Value = IpAddr> {
    (0..6u8, any::<bool>()).prop_map(|(n, v4)| {
        if v4 {
            IpAddr::from([10, 96, 0, n])
        } else {
            IpAddr::from([0xfd00, 96, 0, 0, 0, 0, 0, u16::from(n)])
        }
    })
}

/// Ports with distinct names and numbers, in order.
fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let names = proptest::sample::subsequence(vec!["", "dns", "http"], 0..=3);
    (names, option::of(30_000..30_003u16)).prop_map(|(names, node_port)| {
        let ports = names.into_iter().zip(80..).flat_map(|(name, port)| {
            let port = move |protocol| ServicePort {
                node_port,
                ..ServicePort::new(name, protocol, port)
            };
            match name {
                "dns" => vec![port(Protocol::TCP), port(Protocol::UDP)],
                _ => vec![port(Protocol::TCP)],
            }
        });
        ports.collect()
    })
}

pub fn slice() -> impl Strategy<Value = EndpointSlice> {
    let family = select(IpFamily::ALL.as_slice());
    (
        "[1-4]",
        service_key(),
        family,
        ports(),
        vec(8080..8082u16, 4),
    )
        .prop_flat_map(|(name, service, family, ports, numbers)| {
            let ports: Vec<_> = ports
                .into_iter()
                .zip(numbers)
                .map(|(port, number)| EndpointPort {
                    name: port.name,
                    protocol: port.protocol,
                    port: number,
                })
                .collect();
            vec(endpoint(family), 0..4).prop_map(move |mut endpoints| {
                endpoints.sort_by_key(|endpoint| endpoint.ip);
                endpoints.dedup_by_key(|endpoint| endpoint.ip);
                EndpointSlice {
                    key: service.sibling(name.as_str()),
                    service: service.clone(),
                    family,
                    ports: ports.clone(),
                    endpoints,
                }
            })
        })
}

pub fn endpoint(family: IpFamily) -> impl Strategy<Value = Endpoint> {
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        0..6u8,
        conditions,
        option::of(node_name()),
        hints(zone()),
        hints(node_name()),
    )
        .prop_map(
            move |(n, (ready, serving, terminating), node, zone_hints, node_hints)| Endpoint {
                ip: match family {
                    IpFamily::V4 => IpAddr::from([10, 0, 0, n]),
                    IpFamily::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
                },
                ready,
                serving,
                terminating,
                placement: Placement {
                    node,
                    zone_hints,
                    node_hints,
                }
                .shared(),
            },
        )
}

pub fn node() -> impl Strategy<Value = Node> {
    (node_name(), option::of(zone())).prop_map(|(name, zone)| Node {
        key: ObjectKey::new("", name),
        zone: zone.map(String::from),
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        leaving: None,
    })
}

pub fn zone() -> impl Strategy<Value = Box<str>> {
    select(vec!["zone-a", "zone-b"]).prop_map(Box::from)
}

fn node_name() -> impl Strategy<Value = Box<str>> {
    select(vec![THIS_NODE, "node-1"]).prop_map(Box::from)
}

fn hints(name: impl Strategy<Value = Box<str>>) -> impl Strategy<Value = Box<[Box<str>]>> {
    // Mostly present, or no set of endpoints would ever be fully hinted.
    prop_oneof![
        1 => Just(Box::default()),
        4 => name.prop_map(|name| Box::from([name])),
    ]
}
