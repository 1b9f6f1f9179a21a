//! The paths of S39 and the verdicts of S43 in a second, plainer implementation, to
//! compare the selection with.

use std::collections::BTreeSet;

use super::*;

/// The location of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// Off this node, and no pod.
    Outside,
    /// A pod or a process of this node.
    Here,
}

/// The treatment of a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// One of these, by address and port.
    To(BTreeSet<(IpAddr, u16)>),
    Reject,
    Drop,
}

/// The verdict of the selected tables.
fn selected<F: Family>(
    port: &DesiredPort<F>,
    frontend: &DesiredFrontend<F>,
    client: Client,
) -> Verdict {
    let exempt = client == Client::Here && frontend.kind != FrontendKind::ClusterIp;
    let local = frontend.local_set && !exempt;
    let members = port.endpoints.iter();
    let members = members.filter(|(_, used)| if local { used.local } else { used.cluster });
    let to: BTreeSet<_> = members.map(|(&(ip, n), _)| (ip.into(), n)).collect();
    let empty = if local {
        port.local_empty
    } else {
        port.cluster_empty
    };
    match empty {
        _ if !to.is_empty() => Verdict::To(to),
        WhenEmpty::Reject => Verdict::Reject,
        WhenEmpty::Drop => Verdict::Drop,
    }
}

/// The right verdict for endpoints of which no two share an address.
fn right<F: Family>(
    service: &Service,
    port: &ServicePort,
    slices: &[EndpointSlice],
    node: &NodeContext,
    kind: FrontendKind,
    client: Client,
) -> Verdict {
    let mut endpoints = Vec::new();
    for slice in slices {
        for target in &slice.ports {
            if target.name == port.name && target.protocol == port.protocol {
                let ours = slice
                    .endpoints
                    .iter()
                    .filter(|e| F::from_ip(e.ip).is_some());
                endpoints.extend(ours.map(|endpoint| (endpoint, target.port)));
            }
        }
    }
    let draining = |e: &Endpoint| !e.ready && e.serving && e.terminating;
    let nobody = !endpoints.iter().any(|(e, _)| e.ready || draining(e));
    let is_here = |e: &Endpoint| e.placement.node.as_deref() == Some(THIS_NODE);
    let local = match (kind, client) {
        (FrontendKind::ClusterIp, _) => service.internal_local,
        (_, Client::Outside) => service.external_local,
        (_, Client::Here) => false,
    };
    if local {
        endpoints.retain(|(endpoint, _)| is_here(endpoint));
    }
    let mut to: Vec<_> = endpoints.iter().filter(|(e, _)| e.ready).copied().collect();
    if to.is_empty() {
        to = endpoints.into_iter().filter(|(e, _)| draining(e)).collect();
    } else if !local {
        to = near(to, node);
    }
    if to.is_empty() {
        return if nobody {
            Verdict::Reject
        } else {
            Verdict::Drop
        };
    }
    Verdict::To(to.into_iter().map(|(e, number)| (e.ip, number)).collect())
}

/// S34: those of ready endpoints that their hints say are for this node.
fn near<'a>(ready: Vec<(&'a Endpoint, u16)>, node: &NodeContext) -> Vec<(&'a Endpoint, u16)> {
    type Hints = fn(&Endpoint) -> &[Box<str>];
    let levels: [(Hints, Option<&str>); 2] = [
        (|e| &e.placement.node_hints, Some(&node.name)),
        (|e| &e.placement.zone_hints, node.zone.as_deref()),
    ];
    for (hints, here) in levels {
        let Some(here) = here else { continue };
        let for_us = |e: &Endpoint| hints(e).iter().any(|hint| **hint == *here);
        if ready.iter().all(|(e, _)| !hints(e).is_empty()) && ready.iter().any(|(e, _)| for_us(e)) {
            return ready.into_iter().filter(|(e, _)| for_us(e)).collect();
        }
    }
    ready
}

fn assert_paths<F: Family>(service: &Service, slices: &[EndpointSlice], node: &NodeContext) {
    let selected_ports = select_service::<F>(service, slices, node);
    for (selected_port, port) in selected_ports.iter().zip(&service.ports) {
        for frontend in &selected_port.frontends {
            for client in [Client::Outside, Client::Here] {
                assert_eq!(
                    selected(selected_port, frontend, client),
                    right::<F>(service, port, slices, node, frontend.kind, client),
                    "{client:?} to {frontend:?}"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn every_path_leads_where_it_should(
        service in generators::service(),
        slices in vec(generators::slice(), 0..5),
        zone in proptest::option::of(generators::zone()),
    ) {
        let node = NodeContext { zone: zone.map(String::from), ..node() };
        let mut seen = BTreeSet::new();
        let slices: Vec<_> = slices
            .into_iter()
            .map(|mut slice| {
                slice.service = service.key.clone();
                slice.endpoints.retain(|endpoint| seen.insert(endpoint.ip));
                slice
            })
            .collect();
        assert_paths::<V4>(&service, &slices, &node);
        assert_paths::<V6>(&service, &slices, &node);
    }
}

/// S41a: A and B are ready here, C drains here, D is gone but for its record,
/// E is ready elsewhere, F drains elsewhere.
fn worked_case<F: TestFamily>(present: &str) -> EndpointSlice {
    let mut slice = slice::<F>("a", &[("", TCP, 8080)], []);
    for (index, name) in (1..).zip("ABCDEF".chars()) {
        if present.contains(name) {
            let here = !"EF".contains(name);
            slice.endpoints.push(Endpoint {
                ready: "ABE".contains(name),
                serving: name != 'D',
                terminating: "CDF".contains(name),
                placement: crate::model::Placement {
                    node: Some(if here { THIS_NODE } else { "elsewhere" }.into()),
                    ..Default::default()
                }
                .shared(),
                ..ready(F::pod(index).into())
            });
        }
    }
    slice
}

/// The endpoints of a verdict by their letters.
fn letters(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Reject => "reject".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::To(endpoints) => {
            let last = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(ip) => ip.octets()[15],
            };
            let letters = endpoints
                .iter()
                .map(|(ip, _)| char::from(b'A' + last(ip) - 1));
            letters.collect()
        }
    }
}

/// S41a, S40: a load balancer's address under externalTrafficPolicy: Local;
/// a pod to the cluster IP, a pod to the load balancer, and an outsider to it.
#[rstest]
#[case::all("ABCDE", "ABE", "ABE", "AB")]
#[case::no_ready_here("CDE", "E", "E", "C")]
#[case::only_draining_elsewhere("DF", "F", "F", "drop")]
#[case::none_here("E", "E", "E", "drop")]
#[case::none_serving("D", "reject", "reject", "reject")]
#[case::nobody("", "reject", "reject", "reject")]
fn worked_cases_local(
    #[case] present: &str,
    #[case] cluster_ip: &str,
    #[case] from_pod: &str,
    #[case] from_outside: &str,
) {
    assert_worked::<V4>(true, present, [cluster_ip, from_pod, from_outside]);
    assert_worked::<V6>(true, present, [cluster_ip, from_pod, from_outside]);
}

/// The same under externalTrafficPolicy: Cluster.
#[rstest]
#[case::all("ABCDE", "ABE")]
#[case::no_ready_anywhere("CDF", "CF")]
#[case::none_serving("D", "reject")]
fn worked_cases_cluster(#[case] present: &str, #[case] everyone: &str) {
    assert_worked::<V4>(false, present, [everyone; 3]);
    assert_worked::<V6>(false, present, [everyone; 3]);
}

fn assert_worked<F: TestFamily>(external_local: bool, present: &str, expected: [&str; 3]) {
    let service = Service {
        external_local,
        ..with_everything()
    };
    let slices = [worked_case::<F>(present)];
    let ports = select_service::<F>(&service, &slices, &node());
    let frontend = |kind| {
        let mut frontends = ports[0].frontends.iter();
        frontends
            .find(|f| f.kind == kind)
            .expect("it has all kinds")
    };
    let to = |kind, client| letters(&selected(&ports[0], frontend(kind), client));
    assert_eq!(to(FrontendKind::ClusterIp, Client::Here), expected[0]);
    for kind in [
        FrontendKind::LoadBalancer,
        FrontendKind::NodePort,
        FrontendKind::ExternalIp,
    ] {
        assert_eq!(to(kind, Client::Here), expected[1]);
        assert_eq!(to(kind, Client::Outside), expected[2]);
    }
    assert_paths::<F>(&service, &slices, &node());
}
