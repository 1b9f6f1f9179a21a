//! Session affinity by client address (S71–S76).

use std::{collections::BTreeSet, net::SocketAddr};

use proxy_common::local_addr::LocalAddr;
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

const TIMEOUT: u32 = 100;

/// The backend of a new connection of this client.
#[track_caller]
fn connect(datapath: &Datapath, client: SocketAddr, frontend: SocketAddr, tcp: bool) -> SocketAddr {
    let request = if tcp {
        Packet::syn(client, frontend)
    } else {
        Packet::udp(client, frontend)
    };
    let ran = datapath.run(Hook::Ingress, &request);
    let flows = datapath.flows_of(client);
    let Some(flow) = flows.iter().find(|flow| flow.frontend == frontend) else {
        panic!("{ran:?}");
    };
    flow.backend
}

/// The backends of new connections from many ports of one client.
fn spread(
    datapath: &Datapath,
    cast: Cast,
    index: u8,
    frontend: SocketAddr,
) -> BTreeSet<SocketAddr> {
    (0..32)
        .map(|port| {
            connect(
                datapath,
                cast.pod_with(index, 21_000 + port),
                frontend,
                true,
            )
        })
        .collect()
}

#[rstest]
fn a_client_keeps_its_backend(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let endpoints = cast.endpoints(8);
    let port = if tcp {
        ServicePort::tcp(cast.vip(), &endpoints)
    } else {
        ServicePort::udp(cast.vip(), &endpoints)
    };
    datapath.serve(&port.with_session_affinity(TIMEOUT));
    let mut backends = BTreeSet::new();
    for client in 1..=16 {
        let first = connect(&datapath, cast.pod_with(client, 20_000), cast.vip(), tcp);
        for number in 20_001..20_010 {
            let next = connect(&datapath, cast.pod_with(client, number), cast.vip(), tcp);
            assert_eq!(next, first);
        }
        backends.insert(first);
    }
    assert!(backends.len() > 1, "clients are spread all the same");
}

/// One client, one backend, over all frontends of a port (S71).
#[rstest]
fn all_frontends_of_a_port_share_it(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let public = SocketAddr::new(cast.stranger().ip(), 443);
    datapath.serve(
        &ServicePort::tcp(cast.vip(), &cast.endpoints(8))
            .with(Frontend::node_port(30_080))
            .with(Frontend::load_balancer(public))
            .with_session_affinity(TIMEOUT),
    );
    let first = connect(&datapath, cast.outsider_with(1, 20_000), cast.vip(), true);
    for (number, frontend) in [
        (20_001, SocketAddr::new(cast.node(), 30_080)),
        (20_002, public),
        (20_003, cast.vip()),
    ] {
        let next = connect(&datapath, cast.outsider_with(1, number), frontend, true);
        assert_eq!(next, first, "{frontend}");
    }
}

/// Two ports of one Service, with the same pods, remember clients each by
/// themselves (S71).
#[rstest]
fn ports_of_one_service_do_not_share_it(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let port = |number, name| {
        ServicePort::tcp(cast.vip_with(10, number), &cast.endpoints(8))
            .named("web", name)
            .with_session_affinity(TIMEOUT)
    };
    datapath.serve_all(&[port(80, "http"), port(443, "https")]);
    let mut pinned = [Vec::new(), Vec::new()];
    for client in 1..=12 {
        for (backends, number) in pinned.iter_mut().zip([80, 443]) {
            let backend = spread(&datapath, cast, client, cast.vip_with(10, number));
            assert_eq!(backend.len(), 1, "one client, one port, one backend");
            backends.extend(backend);
        }
    }
    assert_ne!(pinned[0], pinned[1]);
    assert_eq!(datapath.affinities(family).len(), 24);
}

/// A port with another name is another port, and knows no clients (S6).
#[rstest]
fn a_renamed_port_forgets_its_clients(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let port = ServicePort::tcp(cast.vip(), &cast.endpoints(8)).with_session_affinity(TIMEOUT);
    let backends = |datapath: &Datapath, number| -> Vec<_> {
        (1..=12)
            .map(|client| connect(datapath, cast.pod_with(client, number), cast.vip(), true))
            .collect()
    };
    datapath.serve(&port.clone().named("web", "http"));
    let pinned = backends(&datapath, 20_000);
    datapath.serve(&port.clone().named("web", "http"));
    assert_eq!(backends(&datapath, 20_001), pinned, "the same port");
    datapath.serve(&port.named("web", "renamed"));
    let chosen = backends(&datapath, 20_002);
    assert_ne!(chosen, pinned);
    assert_eq!(backends(&datapath, 20_003), chosen, "remembered anew");
}

/// Idle clients are forgotten; each new connection starts the time anew, and
/// packets of open flows do not (S72).
#[rstest]
fn it_ends_after_idle_time(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath
        .serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(8)).with_session_affinity(TIMEOUT));
    let first = spread(&datapath, cast, 1, cast.vip());
    assert_eq!(first.len(), 1);
    datapath.age_affinities(family, 80);
    connect(&datapath, cast.pod_with(1, 22_000), cast.vip(), true);
    datapath.age_affinities(family, 80);
    assert_eq!(
        BTreeSet::from([connect(
            &datapath,
            cast.pod_with(1, 22_001),
            cast.vip(),
            true
        )]),
        first
    );
    let used = datapath.affinities(family)[0].last_used;
    datapath.age_affinities(family, 50);
    datapath.run(
        Hook::Ingress,
        &Packet::data(cast.pod_with(1, 22_001), cast.vip()),
    );
    assert_eq!(
        datapath.affinities(family)[0].last_used,
        used.wrapping_sub(50)
    );

    // Of nine clients that stayed away too long, some are led elsewhere.
    let before: Vec<_> = (2..=10)
        .map(|client| spread(&datapath, cast, client, cast.vip()))
        .collect();
    datapath.age_affinities(family, TIMEOUT + 10);
    let after: Vec<_> = (2..=10)
        .map(|client| {
            BTreeSet::from([connect(
                &datapath,
                cast.pod_with(client, 23_000),
                cast.vip(),
                true,
            )])
        })
        .collect();
    assert_ne!(before, after);
}

/// An endpoint that leaves and comes back finds no client waiting (S74).
#[rstest]
fn a_backend_that_left_is_forgotten(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let endpoints = cast.endpoints(2);
    let port = |endpoints: &[SocketAddr], elsewhere: &[SocketAddr]| {
        let mut port = ServicePort::tcp(cast.vip(), endpoints).with_session_affinity(TIMEOUT);
        port.elsewhere = elsewhere.to_vec();
        port
    };
    datapath.serve(&port(&endpoints, &[]));
    let clients: Vec<u8> = (1..=32).collect();
    let pinned: Vec<u8> = clients
        .into_iter()
        .filter(|client| {
            connect(&datapath, cast.pod_with(*client, 20_000), cast.vip(), true) == endpoints[0]
        })
        .collect();
    assert!(!pinned.is_empty());
    // Still there and serving, but for no new flow: not ready, say.
    datapath.serve(&port(&endpoints[1..], &endpoints[..1]));
    datapath.serve(&port(&endpoints, &[]));
    let back = pinned
        .iter()
        .filter(|client| {
            connect(&datapath, cast.pod_with(**client, 20_001), cast.vip(), true) == endpoints[0]
        })
        .count();
    assert!(
        back < pinned.len(),
        "some of {} clients choose anew",
        pinned.len()
    );
}

/// On a path that may not use the remembered endpoint, another one is chosen
/// and remembered for that path; the first one stays (S73).
#[rstest]
fn a_path_keeps_to_its_own_endpoints(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let [here, there] = [cast.endpoint(1), cast.endpoint(2)];
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let frontend = SocketAddr::new(cast.node(), 30_080);
    datapath.serve(
        &ServicePort::tcp(cast.vip(), &[here, there])
            .here(&[here])
            .with(Frontend::node_port(30_080).local())
            .with_session_affinity(TIMEOUT),
    );
    let remote = (1..=32)
        .find(|client| {
            connect(
                &datapath,
                cast.outsider_with(*client, 20_000),
                cast.vip(),
                true,
            ) == there
        })
        .expect("a client of the endpoint elsewhere");
    let by_node_port = connect(
        &datapath,
        cast.outsider_with(remote, 20_001),
        frontend,
        true,
    );
    assert_eq!(by_node_port, here);
    let by_vip = connect(
        &datapath,
        cast.outsider_with(remote, 20_002),
        cast.vip(),
        true,
    );
    assert_eq!(by_vip, there);
}

/// Switched on and off, it counts for the next connection; what was remembered
/// before it was off does not come back (S75).
#[rstest]
fn it_can_be_switched(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let port = ServicePort::tcp(cast.vip(), &cast.endpoints(8));
    datapath.serve(&port);
    assert!(spread(&datapath, cast, 1, cast.vip()).len() > 1);
    datapath.serve(&port.clone().with_session_affinity(TIMEOUT));
    datapath.forget_flows();
    let clients = 1..=12;
    let pinned: Vec<_> = clients
        .clone()
        .map(|client| spread(&datapath, cast, client, cast.vip()))
        .collect();
    assert!(pinned.iter().all(|backends| backends.len() == 1));
    datapath.serve(&port);
    assert!(
        (0..32)
            .map(|number| connect(
                &datapath,
                cast.pod_with(1, 24_000 + number),
                cast.vip(),
                true
            ))
            .collect::<BTreeSet<_>>()
            .len()
            > 1
    );
    datapath.serve(&port.with_session_affinity(TIMEOUT));
    let again: Vec<_> = clients
        .map(|client| {
            BTreeSet::from([connect(
                &datapath,
                cast.pod_with(client, 25_000),
                cast.vip(),
                true,
            )])
        })
        .collect();
    assert_ne!(pinned, again);
}
