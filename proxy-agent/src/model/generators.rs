//! Generated domain objects, for tests. Names and addresses are few, so that
//! objects meet: slices share a Service, endpoints share an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, option, prelude::*, sample::select};
use proxy_common::net::Protocol;

use super::{
    Endpoint, EndpointSlice, IpFamily, Node, ObjectKey, Placement, Service, ServicePort,
    endpoint_slice::EndpointPort, service::ClusterIps,
};

/// The node that stands for "this node" in tests.
pub const THIS_NODE: &str = "node-0";

pub fn service_key() -> impl Strategy<Value = ObjectKey> {
    ("[ab]", "[xyz]").prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

pub fn service() -> impl Strategy<Value = Service> {
    (
        service_key(),
        option::of(0..4u8),
        option::of(0..4u16),
        any::<bool>(),
        ports(),
    )
        .prop_map(|(key, v4, v6, internal_local, ports)| Service {
            key,
            cluster_ips: ClusterIps {
                v4: v4.map(|n| Ipv4Addr::new(10, 96, 0, n)),
                v6: v6.map(|n| Ipv6Addr::new(0xfd00, 96, 0, 0, 0, 0, 0, n)),
            },
            internal_local,
            ports,
        })
}

/// Ports with distinct names and numbers, in order.
fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    proptest::sample::subsequence(vec!["", "dns", "http"], 0..=3).prop_map(|names| {
        let ports = names.into_iter().zip(80..).flat_map(|(name, port)| {
            let port = move |protocol| ServicePort {
                name: name.to_owned(),
                protocol,
                port,
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
                    key: ObjectKey::new(service.namespace.clone(), name.clone()),
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
