//! `loadBalancerSourceRanges`: who may reach a load balancer's address.

use std::net::SocketAddr;

use proxy_common::counter::Counter;
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

use crate::external::{Kind, only};

/// S57–S59: source ranges restrict new flows to load balancers' addresses of
/// their own Service, pods included, and drop the others.
#[rstest]
fn source_ranges_restrict_load_balancers(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] served: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (address, frontend) = Kind::LoadBalancer.frontend(cast);
    let endpoints: &[_] = if served { &[cast.endpoint(1)] } else { &[] };
    let other = SocketAddr::new(address.ip(), 444);
    datapath.serve_all(&[
        ServicePort::tcp(cast.vip(), endpoints)
            .with(frontend.restricted())
            .for_clients(&only(cast.outsider().ip())),
        ServicePort::tcp(cast.vip_with(11, 80), &[cast.endpoint(2)])
            .with(Frontend::load_balancer(other)),
    ]);
    let admitted = Packet::syn(cast.outsider(), address);
    let ran = datapath.run(Hook::Ingress, &admitted);
    if served {
        ran.passed_as(&admitted.to(cast.endpoint(1)));
    } else {
        ran.counted(&[Counter::NoEndpoint]);
    }
    for client in [cast.outsider_with(2, 40_000), cast.pod()] {
        let ran = datapath.run(Hook::Ingress, &Packet::syn(client, address));
        ran.dropped_for(Counter::SourceRangeDenied);
        // The cluster IP and the other Service are not concerned.
        let request = Packet::syn(client, other);
        let ran = datapath.run(Hook::Ingress, &request);
        ran.passed_as(&request.to(cast.endpoint(2)));
    }
    if served {
        let request = Packet::syn(cast.pod_with(3, 40_000), cast.vip());
        let ran = datapath.run(Hook::Ingress, &request);
        ran.passed_as(&request.to(cast.endpoint(1)));
    }
}

/// S59: traffic of this node that loops back from the address itself.
#[rstest]
fn an_address_may_reach_itself_where_the_node_is_in_range(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] allowed: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (address, frontend) = Kind::LoadBalancer.frontend(cast);
    let frontend = if allowed {
        frontend.restricted_but_for_itself()
    } else {
        frontend.restricted()
    };
    datapath.serve(
        &ServicePort::tcp(cast.vip(), &[cast.endpoint(1)])
            .with(frontend)
            .for_clients(&only(cast.outsider().ip())),
    );
    let request = Packet::syn(SocketAddr::new(address.ip(), 40_000), address);
    let ran = datapath.run(Hook::Ingress, &request);
    if allowed {
        ran.passed_as(&request.to(cast.endpoint(1)));
    } else {
        ran.dropped_for(Counter::SourceRangeDenied);
    }
}
