//! `NodePorts`, external IPs and load balancers' addresses: who gets which
//! backends, and whose address the backend sees (S39, S43, S51, S58, S63–S70).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    config::Config, counter::Counter, device::Device, local_addr::LocalAddr, net::Protocol,
};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

pub(crate) const NODE_PORT: u16 = 30_080;

/// The origin of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    PodHere,
    /// A pod of another node, which the detector takes for a local one.
    PodElsewhere,
    Outside,
}

/// The destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NodePort,
    ExternalIp,
    LoadBalancer,
}

impl Kind {
    const ALL: [Self; 3] = [Self::NodePort, Self::ExternalIp, Self::LoadBalancer];

    pub(crate) fn frontend(self, cast: Cast) -> (SocketAddr, Frontend) {
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

pub(crate) fn client(cast: Cast, from: From, port: u16) -> SocketAddr {
    match from {
        From::PodHere | From::PodElsewhere => cast.pod_with(1, port),
        From::Outside => cast.outsider_with(1, port),
    }
}

pub(crate) fn enters_by(datapath: &mut Datapath, from: From) {
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

/// Returns the CIDR of one address.
pub(crate) fn only(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
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

/// A change of a Service's frontend.
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
