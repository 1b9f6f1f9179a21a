#![allow(
    clippy::used_underscore_binding,
    reason = "a case is a family: a type in the guise of a value"
)]

mod paths;

use std::{net::IpAddr, sync::Arc};

use proptest::{collection::vec, prelude::*};
use proxy_common::{
    family::{V4, V6},
    net::Protocol,
};
use rstest::rstest;

use super::*;
use crate::model::{
    FamilyIps, IpFamily, ObjectKey,
    endpoint_slice::EndpointPort,
    generators::{self, THIS_NODE},
};

/// The same test Service and endpoints in either family.
trait TestFamily: Family {
    /// The nth pod's address.
    fn pod(n: u8) -> Self::Ip;
    fn cluster_ip() -> Self::Ip;
}

impl TestFamily for V4 {
    fn pod(n: u8) -> Self::Ip {
        [10, 0, 0, n].into()
    }

    fn cluster_ip() -> Self::Ip {
        [10, 96, 0, 1].into()
    }
}

impl TestFamily for V6 {
    fn pod(n: u8) -> Self::Ip {
        [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into()
    }

    fn cluster_ip() -> Self::Ip {
        [0xfd00, 96, 0, 0, 0, 0, 0, 1].into()
    }
}

fn node() -> NodeContext {
    NodeContext::new(THIS_NODE)
}

fn service(ports: &[(&str, Protocol, u16)]) -> Service {
    Service {
        key: ObjectKey::new("default", "web"),
        cluster_ips: FamilyIps {
            v4: Some(V4::cluster_ip()),
            v6: Some(V6::cluster_ip()),
        },
        ports: ports
            .iter()
            .map(|&(name, protocol, port)| ServicePort::new(name, protocol, port))
            .collect(),
        ..Service::default()
    }
}

fn slice<F: TestFamily>(
    name: &str,
    ports: &[(&str, Protocol, u16)],
    pods: impl IntoIterator<Item = u8>,
) -> EndpointSlice {
    EndpointSlice {
        key: ObjectKey::new("default", name),
        service: ObjectKey::new("default", "web"),
        family: IpFamily::of(F::pod(0).into()),
        ports: ports
            .iter()
            .map(|&(name, protocol, port)| EndpointPort {
                name: name.into(),
                protocol,
                port,
            })
            .collect(),
        endpoints: pods.into_iter().map(|n| ready(F::pod(n).into())).collect(),
    }
}

fn ready(ip: IpAddr) -> Endpoint {
    Endpoint {
        ip,
        ready: true,
        serving: true,
        terminating: false,
        placement: Arc::default(),
    }
}

fn addresses<F: Family>(port: &DesiredPort<F>) -> Vec<(F::Ip, u16)> {
    port.endpoints.keys().copied().collect()
}

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;

/// S20: by name and protocol, never by number; numbers may differ by slice.
#[rstest]
#[case::v4(V4)]
#[case::v6(V6)]
fn endpoints_match_by_name_and_protocol<F: TestFamily>(#[case] _family: F) {
    let service = service(&[("http", TCP, 80), ("dns", UDP, 53), ("dns", TCP, 53)]);
    let slices = [
        slice::<F>("a", &[("http", TCP, 8080), ("dns", UDP, 5353)], [1]),
        slice::<F>("b", &[("http", TCP, 9090), ("80", TCP, 80)], [1, 2]),
    ];
    let ports = select_service::<F>(&service, &slices, &node());
    let (one, two) = (F::pod(1), F::pod(2));
    assert_eq!(
        addresses(&ports[0]),
        [(one, 8080), (one, 9090), (two, 9090)]
    );
    assert_eq!(addresses(&ports[1]), [(one, 5353)]);
    assert_eq!(addresses(&ports[2]), []);
    let used = EndpointUse {
        serving: true,
        here: false,
        cluster: true,
        local: false,
    };
    assert!(ports[0].endpoints.values().all(|actual| *actual == used));
}

#[rstest]
#[case::v4(V4)]
#[case::v6(V6)]
fn the_unnamed_port_matches_the_unnamed_port<F: TestFamily>(#[case] _family: F) {
    let slices = [slice::<F>(
        "a",
        &[("", TCP, 8080), ("http", TCP, 9090)],
        [1],
    )];
    let ports = select_service::<F>(&service(&[("", TCP, 80)]), &slices, &node());
    assert_eq!(addresses(&ports[0]), [(F::pod(1), 8080)]);
    assert_eq!(ports[0].name.to_string(), "default/web");
    let frontend = DesiredFrontend::new(FrontendKind::ClusterIp, F::cluster_ip(), 80);
    assert_eq!(ports[0].frontends, [frontend]);
}

/// S3, S18: slices of the other family are another world.
#[rstest]
#[case::v4(V4, V6)]
#[case::v6(V6, V4)]
fn families_do_not_mix<F: TestFamily, G: TestFamily>(#[case] _own: F, #[case] _other: G) {
    let mut service = service(&[("", TCP, 80)]);
    let slices = [slice::<G>("a", &[("", TCP, 8080)], [1])];
    let ports = select_service::<F>(&service, &slices, &node());
    assert_eq!(addresses(&ports[0]), []);
    assert_eq!(ports[0].cluster_empty, WhenEmpty::Reject);

    service.cluster_ips = [G::cluster_ip().into()].into_iter().collect();
    assert_eq!(select_service::<F>(&service, &slices, &node()), []);
}

/// S23: whichever slice is read first.
#[rstest]
#[case::v4(V4)]
#[case::v6(V6)]
fn a_live_endpoint_beats_a_terminating_one<F: TestFamily>(#[case] _family: F) {
    let service = service(&[("", TCP, 80)]);
    let live = slice::<F>("a", &[("", TCP, 8080)], [1]);
    let mut terminating = slice::<F>("b", &[("", TCP, 8080)], [1]);
    terminating.endpoints[0].terminating = true;
    terminating.endpoints[0].ready = false;
    for slices in [[&live, &terminating], [&terminating, &live]] {
        let ports = select_service::<F>(&service, slices, &node());
        let used: Vec<_> = ports[0].endpoints.values().collect();
        assert!(used.len() == 1 && used[0].cluster, "{used:?}");
    }
}

/// No endpoint anywhere is refused, none for this path is dropped (S43).
#[rstest]
#[case::nobody(&[], WhenEmpty::Reject)]
#[case::unready(&[(false, false)], WhenEmpty::Reject)]
#[case::elsewhere(&[(true, false)], WhenEmpty::Drop)]
#[case::draining_elsewhere(&[(false, true)], WhenEmpty::Drop)]
fn an_empty_local_set_means(#[case] conditions: &[(bool, bool)], #[case] expected: WhenEmpty) {
    let mut service = service(&[("", TCP, 80)]);
    service.internal_local = true;
    let mut slice = slice::<V6>("a", &[("", TCP, 8080)], []);
    slice.endpoints = conditions
        .iter()
        .map(|&(is_ready, terminating)| Endpoint {
            ready: is_ready,
            terminating,
            serving: is_ready || terminating,
            ..ready(V6::pod(1).into())
        })
        .collect();
    let ports = select_service::<V6>(&service, [&slice], &node());
    assert_eq!(ports[0].local_empty, expected);
    assert!(ports[0].frontends[0].local_set);
    assert!(
        ports[0]
            .endpoints
            .values()
            .all(|used| !used.local && !used.cluster)
    );
}

/// The frontends of a Service with every kind, as lines.
fn frontends<F: TestFamily>(service: &Service, node: &NodeContext) -> Vec<String> {
    let ports = select_service::<F>(service, [], node);
    let line = |frontend: &DesiredFrontend<F>| {
        let address = match frontend.address {
            FrontendAddress::Ip(ip) => ip.to_string(),
            FrontendAddress::AnyNode => "*".to_owned(),
        };
        let mut line = format!("{} {address} {}", frontend.kind, frontend.port);
        for (holds, word) in [
            (frontend.local_set, " local"),
            (frontend.restricted, " restricted"),
            (frontend.allow_itself, " but-itself"),
        ] {
            if holds {
                line += word;
            }
        }
        line
    };
    let frontends = ports.iter().flat_map(|port| &port.frontends);
    frontends.map(line).collect()
}

fn with_everything() -> Service {
    let parse = |ip: &str| ip.parse().expect("an address");
    Service {
        external_ips: ["192.0.2.7", "2001:db8::7"].map(parse).into(),
        load_balancer_ips: ["198.51.100.7", "fd00:198::7"].map(parse).into(),
        ports: vec![ServicePort {
            node_port: Some(30080),
            ..ServicePort::new("", TCP, 80)
        }],
        ..service(&[])
    }
}

/// S3, S7, S8: every address has the port, in its own family.
#[test]
fn every_kind_of_frontend_is_served() {
    let service = Service {
        internal_local: true,
        ..with_everything()
    };
    assert_eq!(
        frontends::<V4>(&service, &node()),
        [
            "ClusterIP 10.96.0.1 80 local",
            "NodePort * 30080",
            "LoadBalancer 198.51.100.7 80",
            "ExternalIP 192.0.2.7 80",
        ]
    );
    let service = Service {
        external_local: true,
        ..with_everything()
    };
    assert_eq!(
        frontends::<V6>(&service, &node()),
        [
            "ClusterIP fd00:60::1 80",
            "NodePort * 30080 local",
            "LoadBalancer fd00:198::7 80 local",
            "ExternalIP 2001:db8::7 80 local",
        ]
    );
}

/// S3: without a cluster IP there is no NodePort of the family either.
#[test]
fn a_family_without_cluster_ip_has_no_frontend() {
    let mut service = with_everything();
    service.cluster_ips.v6 = None;
    assert_eq!(frontends::<V6>(&service, &node()), [""; 0]);
    assert_eq!(frontends::<V4>(&service, &node()).len(), 4);
}

/// `externalIPs` are served unless the feature gate is off (S7).
#[test]
fn external_ips_can_be_left_alone() {
    let node = NodeContext {
        external_ips: false,
        ..node()
    };
    let lines = frontends::<V4>(&with_everything(), &node);
    assert!(!lines.iter().any(|line| line.starts_with("ExternalIP")));
    assert_eq!(lines.len(), 3);
}

/// One address, several fields: the most restrictive meaning counts.
#[test]
fn an_address_has_one_kind() {
    let mut service = with_everything();
    service.external_ips = service.load_balancer_ips.clone();
    service.load_balancer_ips.push(V4::cluster_ip().into());
    service.external_ips.push(V6::cluster_ip().into());
    assert_eq!(
        frontends::<V4>(&service, &node()),
        [
            "ClusterIP 10.96.0.1 80",
            "NodePort * 30080",
            "LoadBalancer 198.51.100.7 80"
        ]
    );
    assert_eq!(
        frontends::<V6>(&service, &node()),
        [
            "ClusterIP fd00:60::1 80",
            "NodePort * 30080",
            "LoadBalancer fd00:198::7 80"
        ]
    );
}

/// S9, S57, S59: for a node with addresses `192.168.0.5` and `fd00:192::5`.
#[rstest]
#[case::none(&[], "", "")]
#[case::only_ipv4(&["10.0.0.0/8"], " restricted", "")]
#[case::only_ipv6(&["2001:db8::/32"], "", " restricted")]
#[case::everyone(&["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32"], "", " restricted")]
#[case::the_node(&["10.0.0.0/8", "192.168.0.0/24", "2001:db8::/32"],
    " restricted but-itself", " restricted")]
#[case::the_node_of_ipv6(&["10.0.0.0/8", "fd00:192::/64"],
    " restricted", " restricted but-itself")]
fn source_ranges_restrict(#[case] ranges: &[&str], #[case] v4: &str, #[case] v6: &str) {
    let node = NodeContext {
        ips: FamilyIps {
            v4: Some([192, 168, 0, 5].into()),
            v6: Some("fd00:192::5".parse().expect("IPv6")),
        },
        ..node()
    };
    let ranges = ranges.iter().map(|range| range.parse().expect("a CIDR"));
    let service = Service {
        source_ranges: ranges.collect(),
        ..with_everything()
    };
    let restricted = |lines: Vec<String>| {
        let restricted = lines.into_iter().filter(|line| line.contains("restricted"));
        restricted.collect::<Vec<_>>()
    };
    let expected = |line: &str, how: &str| {
        let lines = (!how.is_empty()).then(|| format!("{line}{how}"));
        lines.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(
        restricted(frontends::<V4>(&service, &node)),
        expected("LoadBalancer 198.51.100.7 80", v4)
    );
    assert_eq!(
        restricted(frontends::<V6>(&service, &node)),
        expected("LoadBalancer fd00:198::7 80", v6)
    );
    // Ranges that restrict nobody are none.
    for port in select_service::<V4>(&service, [], &node) {
        assert_eq!(port.source_ranges.is_empty(), v4.is_empty());
    }
    for port in select_service::<V6>(&service, [], &node) {
        assert_eq!(port.source_ranges.is_empty(), v6.is_empty());
    }
}

/// A range that cannot be read may have been one of any family: those that have
/// no other admit nobody, and none that admits everyone is overruled.
#[rstest]
#[case::no_other(&[], [true, true])]
#[case::only_ipv4(&["10.0.0.0/8"], [true, true])]
#[case::everyone_in_ipv4(&["0.0.0.0/0"], [false, true])]
#[case::everyone(&["0.0.0.0/0", "::/0"], [false, false])]
fn unreadable_source_ranges_restrict(#[case] ranges: &[&str], #[case] restricted: [bool; 2]) {
    let ranges = ranges.iter().map(|range| range.parse().expect("a CIDR"));
    let service = Service {
        source_ranges: ranges.collect(),
        unusable_source_ranges: true,
        ..with_everything()
    };
    let v4 = frontends::<V4>(&service, &node());
    let v6 = frontends::<V6>(&service, &node());
    let is_restricted = |lines: Vec<String>| lines.iter().any(|l| l.contains("restricted"));
    assert_eq!([v4, v6].map(is_restricted), restricted);
}

#[test]
fn affinity_is_every_ports() {
    let mut service = service(&[("a", TCP, 80), ("b", UDP, 81)]);
    service.affinity = Some(7);
    let ports = select_service::<V4>(&service, [], &node());
    assert!(ports.len() == 2 && ports.iter().all(|port| port.affinity == Some(7)));
}

proptest! {
    /// S22: the order in which slices are read does not matter, nor does a
    /// slice that says again what another says.
    #[test]
    fn slices_merge_like_sets(
        service in generators::service(),
        slices in vec(generators::slice(), 0..5),
        zone in proptest::option::of(generators::zone()),
    ) {
        let node = NodeContext { zone: zone.map(String::from), ..node() };
        // Where several live endpoints share an address, which one counts
        // depends on the order: leave only one of each.
        let mut seen = std::collections::BTreeSet::new();
        let slices: Vec<_> = slices.into_iter().map(|mut slice| {
            slice.endpoints.retain(|endpoint| seen.insert(endpoint.ip));
            slice
        }).collect();
        let forward = select_service::<V4>(&service, &slices, &node);
        let backward = select_service::<V4>(&service, slices.iter().rev(), &node);
        let twice = select_service::<V4>(&service, slices.iter().chain(&slices), &node);
        prop_assert_eq!(&forward, &backward);
        prop_assert_eq!(&forward, &twice);
    }

    /// One port per Service port, in order, each with its own frontend.
    #[test]
    fn every_port_is_served(
        service in generators::service(),
        slices in vec(generators::slice(), 0..5),
    ) {
        let selected = select_service::<V6>(&service, &slices, &node());
        let expected = if service.cluster_ips.v6.is_some() { service.ports.len() } else { 0 };
        prop_assert_eq!(selected.len(), expected);
        for (selected, port) in selected.iter().zip(&service.ports) {
            prop_assert_eq!(&selected.name.port, &port.name);
            prop_assert_eq!(selected.frontends[0].kind, FrontendKind::ClusterIp);
            prop_assert_eq!(selected.frontends[0].port, port.port);
            // No two with one key: each says what holds of it.
            let keys: std::collections::BTreeSet<_> =
                selected.frontends.iter().map(|f| f.key(port.protocol)).collect();
            prop_assert_eq!(keys.len(), selected.frontends.len());
        }
    }
}
