#![allow(
    clippy::used_underscore_binding,
    reason = "a case is a family: a type in the guise of a value"
)]

use std::{net::IpAddr, sync::Arc};

use proptest::{collection::vec, prelude::*};
use proxy_common::{
    family::{V4, V6},
    net::Protocol,
};
use rstest::rstest;

use super::*;
use crate::model::{
    IpFamily, ObjectKey,
    endpoint_slice::EndpointPort,
    generators::{self, THIS_NODE},
    service::ClusterIps,
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
    NodeContext {
        name: THIS_NODE.to_owned(),
        zone: None,
    }
}

fn service(ports: &[(&str, Protocol, u16)]) -> Service {
    Service {
        key: ObjectKey::new("default", "web"),
        cluster_ips: ClusterIps {
            v4: Some(V4::cluster_ip()),
            v6: Some(V6::cluster_ip()),
        },
        internal_local: false,
        ports: ports
            .iter()
            .map(|&(name, protocol, port)| ServicePort {
                name: name.to_owned(),
                protocol,
                port,
            })
            .collect(),
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
                name: name.to_owned(),
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

/// S43
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

proptest! {
    /// S22: the order in which slices are read does not matter, nor does a
    /// slice that says again what another says.
    #[test]
    fn slices_merge_like_sets(
        service in generators::service(),
        slices in vec(generators::slice(), 0..5),
        zone in proptest::option::of(generators::zone()),
    ) {
        let node = NodeContext { name: THIS_NODE.to_owned(), zone: zone.map(String::from) };
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

    /// One port per Service port, in order, each with its own front end.
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
            prop_assert_eq!(selected.frontends.len(), 1);
            prop_assert_eq!(selected.frontends[0].port, port.port);
        }
    }
}
