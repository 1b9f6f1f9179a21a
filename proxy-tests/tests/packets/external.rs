//! `NodePorts`, external IPs and load balancers' addresses: who gets which
//! backends, and whose address the backend sees (S39, S43, S51, S58, S63–S70).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    config::Config, counter::Counter, device::Device, local_addr::LocalAddr, net::Protocol,
};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_080;

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    PodHere,
    /// A pod of another node, which the detector takes for a local one.
    PodElsewhere,
    Outside,
}

/// The destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NodePort,
    ExternalIp,
    LoadBalancer,
}

impl Kind {
    const ALL: [Self; 3] = [Self::NodePort, Self::ExternalIp, Self::LoadBalancer];

    fn frontend(self, cast: Cast) -> (SocketAddr, Frontend) {
        let public = SocketAddr::new(cast.stranger().ip(), 443);
        match self {
            Self::NodePort => (
                SocketAddr::new(cast.node(), NODE_PORT),
                Frontend::node_port(NODE_PORT),
            ),
            Self::ExternalIp => (public, Frontend::external_ip(public)),
            Self::LoadBalancer => (public, Frontend::load_balancer(public)),
        }
    }
}

fn client(cast: Cast, from: From, port: u16) -> SocketAddr {
    match from {
        From::PodHere | From::PodElsewhere => cast.pod_with(1, port),
        From::Outside => cast.outsider_with(1, port),
    }
}

fn enters_by(datapath: &mut Datapath, from: From) {
    let flags = match from {
        From::PodHere => Device::COVERED | Device::POD_ROUTES,
        From::PodElsewhere | From::Outside => Device::COVERED | Device::UPLINK,
    };
    datapath.device(|device| device.flags = flags);
}

/// One endpoint here and one elsewhere, and what `frontend` reaches of them
/// from many ports: each backend with the address that it sees.
fn reached(
    datapath: &mut Datapath,
    cast: Cast,
    from: From,
    frontend: SocketAddr,
) -> BTreeSet<(SocketAddr, bool)> {
    datapath.forget_flows();
    enters_by(datapath, from);
    (0..48)
        .map(|index| {
            let client = client(cast, from, 20_000 + index);
            let request = Packet::syn(client, frontend);
            let ran = datapath.run(Hook::Ingress, &request);
            let flows = datapath.flows_of(client);
            assert_eq!(flows.len(), 1, "{ran:?}");
            let led = request.to(flows[0].backend);
            ran.passed_as(&led);
            let left = datapath.run(Hook::Egress, &led);
            let seen = datapath.flows_of(client)[0].masquerade;
            let masqueraded = seen.port() != 0;
            left.passed_as(&if masqueraded {
                led.clone().from(seen)
            } else {
                led
            });
            if masqueraded {
                assert_eq!(seen.ip(), cast.node());
            }
            (flows[0].backend, masqueraded)
        })
        .collect()
}

fn both(cast: Cast) -> [SocketAddr; 2] {
    [cast.endpoint(1), cast.endpoint(2)]
}

/// The rows of S39 and S70 for clients that come in by a device.
#[rstest]
fn policies_decide_by_the_client(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(From::PodHere, From::PodElsewhere, From::Outside)] from: From,
    #[values(true, false)] detector: bool,
    #[values(true, false)] local: bool,
) {
    let cast = Cast::of(family);
    let [here, there] = both(cast);
    for kind in Kind::ALL {
        let mut datapath = Datapath::load();
        if !detector {
            datapath.configure(|config| {
                config.flags &= !(Config::DETECT_PREFIX_V4 | Config::DETECT_PREFIX_V6);
            });
        }
        datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
        let (address, mut frontend) = kind.frontend(cast);
        frontend.local = local;
        datapath.serve(
            &ServicePort::tcp(cast.vip(), &[here, there])
                .here(&[here])
                .with(frontend),
        );
        let is_pod = detector && from != From::Outside;
        let expected: BTreeSet<_> = match (local, is_pod) {
            // Source kept, endpoints of this node.
            (true, false) => BTreeSet::from([(here, false)]),
            // The short circuit for pods, and S69.
            (true, true) => {
                let hidden = from == From::PodElsewhere;
                BTreeSet::from([(here, hidden), (there, hidden)])
            }
            // No route of the test machine leads to the endpoint here, so its
            // replies are not sure to come by.
            (false, _) => {
                let hidden = from != From::PodHere;
                BTreeSet::from([(here, hidden), (there, hidden)])
            }
        };
        assert_eq!(
            reached(&mut datapath, cast, from, address),
            expected,
            "{kind:?}"
        );
    }
}

/// `internalTrafficPolicy` says nothing about external frontends, and
/// `externalTrafficPolicy` nothing about cluster IPs.
#[rstest]
fn policies_keep_to_their_own_frontends(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let [here, there] = both(cast);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let mut internal = ServicePort::tcp(cast.vip(), &[here, there])
        .here(&[here])
        .with(Frontend::node_port(NODE_PORT));
    internal.local = true;
    let external = ServicePort::tcp(cast.vip_with(11, 80), &[here, there])
        .here(&[here])
        .with(Frontend::node_port(NODE_PORT + 1).local());
    datapath.serve_all(&[internal, external]);
    let backends = |datapath: &mut Datapath, frontend| -> BTreeSet<_> {
        let reached = reached(datapath, cast, From::Outside, frontend);
        reached.into_iter().map(|(backend, _)| backend).collect()
    };
    let node = |port| SocketAddr::new(cast.node(), port);
    let (here, all) = (BTreeSet::from([here]), BTreeSet::from([here, there]));
    assert_eq!(backends(&mut datapath, cast.vip()), here);
    assert_eq!(backends(&mut datapath, node(NODE_PORT)), all);
    assert_eq!(backends(&mut datapath, cast.vip_with(11, 80)), all);
    assert_eq!(backends(&mut datapath, node(NODE_PORT + 1)), here);
}

/// Replies to clients of a `NodePort` come from the node's address again.
#[rstest]
#[case::kept(true)]
#[case::masqueraded(false)]
fn replies_come_from_the_frontend(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] local: bool,
    #[values(Kind::NodePort, Kind::LoadBalancer)] kind: Kind,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let (address, mut frontend) = kind.frontend(cast);
    frontend.local = local;
    let backend = cast.endpoint(1);
    datapath.serve(
        &ServicePort::tcp(cast.vip(), &[backend])
            .here(&[backend])
            .with(frontend),
    );
    let client = cast.outsider();
    let request = Packet::syn(client, address);
    datapath.run(Hook::Ingress, &request);
    let ran = datapath.run(Hook::Egress, &request.to(backend));
    let seen = if local {
        client
    } else {
        datapath.flows_of(client)[0].masquerade
    };
    ran.passed_as(&Packet::syn(client, backend).from(seen));

    let reply = Packet::syn_ack(backend, seen);
    let back = reply.clone().to(client);
    datapath.run(Hook::Ingress, &reply).passed_as(&back);
    let ran = datapath.run(Hook::Egress, &back);
    ran.passed_as(&back.from(address));
}

/// A `NodePort` is one on addresses that take them, and on no other.
#[rstest]
fn node_ports_are_on_addresses_that_take_them(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    datapath.local_addr(cast.router(), 0);
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]).with(Frontend::node_port(NODE_PORT)));
    for (ip, taken) in [
        (cast.node(), true),
        (cast.router(), false),
        (cast.stranger().ip(), false),
    ] {
        let request = Packet::syn(cast.outsider(), SocketAddr::new(ip, NODE_PORT));
        let ran = datapath.run(Hook::Ingress, &request);
        if taken {
            ran.passed_as(&request.to(backend));
        } else {
            ran.left_alone(&request.bytes());
        }
    }
    // Another protocol or port on the node is the host's own business.
    for request in [
        Packet::udp(cast.outsider(), SocketAddr::new(cast.node(), NODE_PORT)),
        Packet::syn(cast.outsider(), SocketAddr::new(cast.node(), NODE_PORT + 1)),
    ] {
        datapath
            .run(Hook::Ingress, &request)
            .left_alone(&request.bytes());
    }
}

/// Flows of others that have a NodePort's number at another address are none of
/// its business, while it is there and when it goes (S81).
#[rstest]
fn flows_of_strangers_do_not_end_with_a_node_port(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    datapath.local_addr(cast.router(), 0);
    let backend = cast.endpoint(1);
    let port = ServicePort::udp(cast.vip(), &[backend]).with(Frontend::node_port(NODE_PORT));
    let strangers = [cast.router(), cast.stranger().ip()].map(|ip| {
        let server = SocketAddr::new(ip, NODE_PORT);
        [
            (Hook::Ingress, Packet::udp(cast.outsider(), server)),
            (Hook::Egress, Packet::udp(cast.outsider(), server)),
            (Hook::Ingress, Packet::udp(server, cast.outsider())),
            (Hook::Egress, Packet::udp(server, cast.outsider())),
        ]
    });
    let undisturbed = |datapath: &Datapath| {
        for (hook, packet) in strangers.as_flattened() {
            datapath.run(*hook, packet).left_alone(&packet.bytes());
        }
    };
    undisturbed(&datapath);
    datapath.serve(&port);
    undisturbed(&datapath);
    let own = Packet::udp(cast.outsider(), SocketAddr::new(cast.node(), NODE_PORT));
    datapath
        .run(Hook::Ingress, &own)
        .passed_as(&own.clone().to(backend));
    undisturbed(&datapath);
    datapath.unserve(&port);
    undisturbed(&datapath);
    datapath.run(Hook::Ingress, &own).left_alone(&own.bytes());
    undisturbed(&datapath);
}

/// NodePorts of the loopback are for this node's own sockets: a packet from a
/// device that is addressed to them goes its way, which ends in the kernel
/// (S56, CVE-2020-8558).
#[rstest]
fn nobody_else_reaches_the_loopback(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let loopback: IpAddr = match family {
        Family::V4 => [127, 0, 0, 1].into(),
        Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    datapath.local_addr(loopback, LocalAddr::NODE_PORTS | LocalAddr::LOOPBACK);
    datapath.serve(
        &ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]).with(Frontend::node_port(NODE_PORT)),
    );
    for client in [cast.outsider(), cast.pod()] {
        let request = Packet::syn(client, SocketAddr::new(loopback, NODE_PORT));
        datapath
            .run(Hook::Ingress, &request)
            .left_alone(&request.bytes());
    }
}

/// A node's address that is also an external IP is that first (S51).
#[rstest]
fn exact_addresses_come_before_node_ports(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let address = SocketAddr::new(cast.node(), NODE_PORT);
    datapath.serve_all(&[
        ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]).with(Frontend::node_port(NODE_PORT)),
        ServicePort::tcp(cast.vip_with(11, 80), &[cast.endpoint(2)])
            .with(Frontend::external_ip(address)),
    ]);
    let request = Packet::syn(cast.outsider(), address);
    let ran = datapath.run(Hook::Ingress, &request);
    ran.passed_as(&request.to(cast.endpoint(2)));
}

/// S43 for external frontends: nobody anywhere is refused, nobody here is
/// dropped for clients from outside, while pods go elsewhere (S40).
#[rstest]
fn without_endpoints_here(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Kind::NodePort, Kind::ExternalIp, Kind::LoadBalancer)] kind: Kind,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let (address, frontend) = kind.frontend(cast);
    let there = cast.endpoint(2);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[there]).with(frontend.local()));
    enters_by(&mut datapath, From::Outside);
    let request = Packet::syn(cast.outsider(), address);
    let ran = datapath.run(Hook::Ingress, &request);
    ran.dropped_for(Counter::NoLocalEndpoint);
    enters_by(&mut datapath, From::PodHere);
    let from_pod = Packet::syn(cast.pod(), address);
    let ran = datapath.run(Hook::Ingress, &from_pod);
    ran.passed_as(&from_pod.to(there));

    datapath.serve(&ServicePort::tcp(cast.vip(), &[]).with(frontend.local()));
    let ran = datapath.run(Hook::Ingress, &request);
    ran.counted(&[Counter::NoEndpoint]);
}

/// A cidr that has exactly one address.
fn only(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

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

/// Open flows are not asked again: ranges and policies are for new ones.
#[rstest]
fn a_changed_policy_leaves_open_flows_alone(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (address, frontend) = Kind::LoadBalancer.frontend(cast);
    let port = ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]);
    datapath.serve(&port.clone().with(frontend));
    datapath.run(Hook::Ingress, &Packet::syn(cast.outsider(), address));
    datapath.serve(
        &port
            .with(frontend.restricted().local())
            .for_clients(&only(cast.pod().ip())),
    );
    let data = Packet::data(cast.outsider(), address);
    let ran = datapath.run(Hook::Ingress, &data);
    ran.passed_as(&data.to(cast.endpoint(1)));
    let another = Packet::syn(cast.outsider_with(1, 40_001), address);
    let ran = datapath.run(Hook::Ingress, &another);
    ran.dropped_for(Counter::SourceRangeDenied);
}

/// What becomes of a Service's frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    OtherNodePort,
    OtherPort,
    ExternalIpWithdrawn,
    LoadBalancerWithdrawn,
    SourceRangesNarrowed,
}

/// A frontend that is gone, or not for the client any more, ends its UDP flows
/// within a second or so, however busy they are; TCP goes on (S79).
#[rstest]
fn udp_flows_end_with_their_frontend(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Protocol::TCP, Protocol::UDP)] protocol: Protocol,
    #[values(
        Change::OtherNodePort,
        Change::OtherPort,
        Change::ExternalIpWithdrawn,
        Change::LoadBalancerWithdrawn,
        Change::SourceRangesNarrowed
    )]
    change: Change,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    let (node, other) = (cast.node(), cast.vip_with(11, 80));
    let port = |index, number| {
        let vip = cast.vip_with(index, number);
        ServicePort::new(protocol, vip, &[backend]).named("one", "port")
    };
    let ranged = |range: &str| {
        port(10, 80)
            .with(Frontend::load_balancer(other).restricted())
            .for_clients(range)
    };
    let client_range = if family == Family::V4 {
        "198.51.100.0/24"
    } else {
        "fd00:51::/32"
    };
    let (before, after, destination) = match change {
        Change::OtherNodePort => (
            port(10, 80).with(Frontend::node_port(30_080)),
            port(10, 80).with(Frontend::node_port(30_081)),
            SocketAddr::new(node, 30_080),
        ),
        Change::OtherPort => (port(10, 80), port(10, 81), cast.vip_with(10, 80)),
        Change::ExternalIpWithdrawn => (
            port(10, 80).with(Frontend::external_ip(other)),
            port(10, 80),
            other,
        ),
        Change::LoadBalancerWithdrawn => (
            port(10, 80).with(Frontend::load_balancer(other)),
            port(10, 80),
            other,
        ),
        Change::SourceRangesNarrowed => (
            ranged(client_range),
            ranged(if family == Family::V4 {
                "10.0.0.0/8"
            } else {
                "2001:db8::/32"
            }),
            other,
        ),
    };
    let request = match protocol {
        Protocol::TCP => Packet::data(client, destination),
        _ => Packet::udp(client, destination),
    };
    datapath.serve(&before);
    for _ in 0..2 {
        let led = request.clone().to(backend);
        datapath.run(Hook::Ingress, &request).passed_as(&led);
    }
    datapath.serve(&after);
    datapath.age(client, 1);
    let ran = datapath.run(Hook::Ingress, &request);
    if protocol == Protocol::TCP {
        ran.passed_as(&request.to(backend));
        return;
    }
    match change {
        Change::OtherNodePort | Change::ExternalIpWithdrawn | Change::LoadBalancerWithdrawn => {
            ran.left_alone(&request.bytes());
        }
        Change::OtherPort => {
            let error = Packet::port_unreachable(destination.ip(), &request, 8);
            ran.answered_by(&error.answering(&request));
        }
        Change::SourceRangesNarrowed => ran.dropped_for(Counter::SourceRangeDenied),
    }
    // What was addressed to a former NodePort may be told at once from ours, and
    // its flow ends as an idle one.
    if change != Change::OtherNodePort {
        assert_eq!(datapath.flows_of(client), []);
    }
}
