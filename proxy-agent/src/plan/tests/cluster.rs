//! Generated clusters: what every port of every Service should look like.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::{
    family::{Family, V4, V6},
    net::Protocol,
};

use crate::{
    model::{Cidr, ObjectKey, ServicePortName},
    select::{DesiredFrontend, DesiredPort, EndpointUse, FrontendKind, WhenEmpty},
};

/// A family whose addresses a test can make from small numbers.
pub(super) trait TestFamily: Family {
    fn nth(kind: u8, number: u8) -> Self::Ip;
}

impl TestFamily for V4 {
    fn nth(kind: u8, number: u8) -> Self::Ip {
        std::net::Ipv4Addr::new(10, kind, 0, number)
    }
}

impl TestFamily for V6 {
    fn nth(kind: u8, number: u8) -> Self::Ip {
        std::net::Ipv6Addr::new(0xfd00, u16::from(kind), 0, 0, 0, 0, 0, u16::from(number))
    }
}

/// A Service without addresses: numbers that become either family's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) vip: u8,
    /// An address besides: a load balancer's, or an external IP.
    pub(super) other: Option<(FrontendKind, u8)>,
    pub(super) external_local: bool,
    /// The [`clients`] that may use the load balancer's address; all of them if empty.
    pub(super) ranges: BTreeSet<u8>,
    pub(super) allow_itself: bool,
    pub(super) ports: Vec<PortShape>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortShape {
    pub(super) number: u16,
    pub(super) udp: bool,
    pub(super) local_set: bool,
    pub(super) drops: bool,
    pub(super) node_port: Option<u16>,
    pub(super) affinity: Option<u32>,
    /// Number, serving, in cluster set, in local set.
    pub(super) endpoints: BTreeMap<u8, (bool, bool, bool)>,
}

pub(super) type Cluster = BTreeMap<u8, Shape>;

fn port_shape() -> impl Strategy<Value = PortShape> {
    let endpoint = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        80_u16..83,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(30_000_u16..30_003),
        prop::option::of(1_u32..3),
        prop::collection::btree_map(0_u8..12, endpoint, 0..6),
    )
        .prop_map(
            |(number, udp, local_set, drops, node_port, affinity, endpoints)| PortShape {
                number,
                udp,
                local_set,
                drops,
                node_port,
                affinity,
                endpoints,
            },
        )
}

pub(super) fn cluster() -> impl Strategy<Value = Cluster> {
    let kind = prop::sample::select(vec![FrontendKind::ExternalIp, FrontendKind::LoadBalancer]);
    let shape = (
        0_u8..5,
        // Some are another Service's cluster IP.
        prop::option::of((kind, 3_u8..8)),
        any::<bool>(),
        prop::collection::btree_set(0_u8..3, 0..3),
        any::<bool>(),
        prop::collection::vec(port_shape(), 0..3),
    )
        .prop_map(
            |(vip, other, external_local, ranges, allow_itself, ports)| Shape {
                vip,
                other,
                external_local,
                ranges,
                allow_itself,
                ports,
            },
        );
    prop::collection::btree_map(0_u8..6, shape, 0..6)
}

/// One Service with one port, a cluster IP and ready endpoints.
pub(super) fn small(number: u8, endpoints: u8) -> (u8, Shape) {
    let port = PortShape {
        number: 80,
        udp: false,
        local_set: false,
        drops: false,
        node_port: None,
        affinity: None,
        endpoints: (0..endpoints).map(|n| (n, (true, true, false))).collect(),
    };
    let shape = Shape {
        vip: number,
        other: None,
        external_local: false,
        ranges: BTreeSet::new(),
        allow_itself: false,
        ports: vec![port],
    };
    (number, shape)
}

pub(super) fn service_key(number: u8) -> ObjectKey {
    ObjectKey::new("default", format!("service-{number}"))
}

/// A client of each source range there is, and the address of each frontend.
pub(super) fn clients<F: TestFamily>() -> impl Iterator<Item = F::Ip> {
    let inside = (0..3).map(|range| F::nth(200 + range, 7));
    inside.chain((0..8).map(|vip| F::nth(96, vip)))
}

pub(super) fn range<F: TestFamily>(number: u8) -> Cidr<F> {
    let length = if F::NAME == "IPv4" { 16 } else { 32 };
    let net = IpNet::new(F::nth(200 + number, 0).into(), length).expect("a length");
    Cidr::of(net).expect("of the family")
}

pub(super) fn desired<F: TestFamily>(number: u8, shape: &Shape) -> Vec<DesiredPort<F>> {
    let mut seen = BTreeSet::new();
    shape
        .ports
        .iter()
        .filter(|port| seen.insert((port.number, port.udp)))
        .map(|port| DesiredPort {
            name: ServicePortName {
                service: service_key(number),
                port: format!("p{}", port.number).into(),
                protocol: if port.udp {
                    Protocol::UDP
                } else {
                    Protocol::TCP
                },
            },
            frontends: frontends(shape, port),
            endpoints: port
                .endpoints
                .iter()
                .map(|(&number, &(serving, cluster, local))| {
                    let used = EndpointUse {
                        serving,
                        here: local,
                        cluster,
                        local,
                    };
                    ((F::nth(244, number), 8080), used)
                })
                .collect(),
            affinity: port.affinity,
            source_ranges: shape.ranges.iter().map(|n| range(*n)).collect(),
            cluster_empty: when(port.drops),
            local_empty: when(!port.drops),
        })
        .collect()
}

fn frontends<F: TestFamily>(shape: &Shape, port: &PortShape) -> Vec<DesiredFrontend<F>> {
    let cluster_ip = DesiredFrontend {
        local_set: port.local_set,
        ..DesiredFrontend::new(FrontendKind::ClusterIp, F::nth(96, shape.vip), port.number)
    };
    let node_port = port.node_port.map(|number| DesiredFrontend {
        local_set: shape.external_local,
        ..DesiredFrontend::node_port(number)
    });
    let other = shape.other.map(|(kind, number)| DesiredFrontend {
        local_set: shape.external_local,
        restricted: kind == FrontendKind::LoadBalancer && !shape.ranges.is_empty(),
        allow_itself: shape.allow_itself,
        ..DesiredFrontend::new(kind, F::nth(96, number), port.number)
    });
    let mut seen = BTreeSet::new();
    [Some(cluster_ip), node_port, other]
        .into_iter()
        .flatten()
        .filter(|frontend| seen.insert((frontend.address, frontend.port)))
        .collect()
}

fn when(drops: bool) -> WhenEmpty {
    if drops {
        WhenEmpty::Drop
    } else {
        WhenEmpty::Reject
    }
}
