//! Flows of kube-proxy beside ours: while this proxy takes over, and while it gives back.

use std::net::SocketAddr;

use proxy_agent::dataplane::load::Sizes;
use proxy_common::{
    config::Config, counter::Counter, foreign::Foreign, local_addr::LocalAddr,
    masquerade::PortRange, net::Protocol,
};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort, Verdict},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_080;
const TWO_PORTS: PortRange = PortRange::new(2000, 2001).unwrap();
/// Before all flows are known: new ones are entered as they pass.
const HOLD: u32 = Config::LEAVE_NEW | Config::FOREIGN;
/// Those that are known are left alone.
const TAKE_OVER: u32 = Config::FOREIGN;
/// Nothing new is ours any more.
const GIVE_BACK: u32 = Config::LEAVE_NEW;

fn datapath(cast: Cast, flags: u32) -> impl std::ops::DerefMut<Target = Datapath> {
    let mut datapath = Datapath::load();
    serve(&mut datapath, cast);
    set(&mut datapath, flags);
    datapath
}

fn serve(datapath: &mut Datapath, cast: Cast) {
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let endpoints = cast.endpoints(3);
    datapath.serve_all(&[
        ServicePort::tcp(cast.vip(), &endpoints).with(Frontend::node_port(NODE_PORT)),
        ServicePort::udp(cast.vip(), &endpoints).with(Frontend::node_port(NODE_PORT)),
    ]);
}

/// Sets the phase, and leaves the rest of the settings as it is.
fn set(datapath: &mut Datapath, flags: u32) {
    datapath.configure(|config| config.flags |= flags);
}

/// The packet goes on as it came, and is counted as kube-proxy's.
#[track_caller]
fn is_left(datapath: &Datapath, packet: &Packet) {
    let ran = datapath.run(Hook::Ingress, packet);
    ran.passed_as(packet);
    ran.counted(&[Counter::LeftToNetfilter]);
}

/// The packet is translated.
#[track_caller]
fn is_ours(datapath: &Datapath, packet: &Packet) {
    let ran = datapath.run(Hook::Ingress, packet);
    assert_eq!(ran.verdict, Verdict::Next, "{:?}", ran.counted);
    assert_ne!(ran.packet, packet.bytes());
    assert_eq!(ran.counted.get(Counter::LeftToNetfilter.label()), None);
}

/// Packets of flows that are known pass byte for byte, whatever they are; all others open
/// flows here.
#[rstest]
fn known_flows_are_left_alone(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, TAKE_OVER);
    let known = cast.pod();
    let new = cast.pod_with(1, 40_001);
    let node_port = SocketAddr::new(cast.node(), NODE_PORT);
    for frontend in [cast.vip(), node_port] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            datapath.plant_foreign(known, frontend, protocol, Foreign::REQUEST);
        }
        for packet in [
            Packet::syn(known, frontend),
            Packet::data(known, frontend),
            Packet::fin(known, frontend),
            Packet::rst(known, frontend),
            Packet::udp(known, frontend),
            Packet::udp(known, frontend).with_fragment(7, 0, true),
            Packet::udp(known, frontend).with_fragment(7, 800, false),
        ] {
            is_left(&datapath, &packet);
        }
        assert_eq!(datapath.flows(family), []);
        is_ours(&datapath, &Packet::syn(new, frontend));
        is_ours(&datapath, &Packet::data(new, frontend));
        is_ours(&datapath, &Packet::udp(new, frontend));
        datapath.forget_flows();
    }
}

/// What goes on with a connection that nobody knows is netfilter's to judge, so that none
/// that was opened between two looks is torn.
#[rstest]
fn a_connection_is_ours_from_its_first_packet_on(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = datapath(cast, TAKE_OVER);
    let (client, vip) = (cast.pod(), cast.vip());
    for packet in [
        Packet::data(client, vip),
        Packet::fin(client, vip),
        Packet::rst(client, vip),
    ] {
        is_left(&datapath, &packet);
    }
    is_ours(&datapath, &Packet::syn(client, vip));
    is_ours(&datapath, &Packet::data(client, vip));
}

/// A connection of ours whose backend was removed goes on to be ours.
#[rstest]
fn flows_that_need_another_backend_stay_ours(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, TAKE_OVER);
    let (client, vip) = (cast.pod(), cast.vip());
    is_ours(&datapath, &Packet::syn(client, vip));
    is_ours(&datapath, &Packet::udp(client, vip));
    for flow in datapath.flows_of(client) {
        let mut others = cast.endpoints(3);
        others.retain(|endpoint| *endpoint != flow.backend);
        let port = match flow.protocol {
            Protocol::TCP => ServicePort::tcp(vip, &others),
            _ => ServicePort::udp(vip, &others),
        };
        datapath.serve(&port.with(Frontend::node_port(NODE_PORT)));
    }
    is_ours(&datapath, &Packet::data(client, vip));
    is_ours(&datapath, &Packet::udp(client, vip));
}

/// Before all flows of kube-proxy are known, its new ones are remembered as they pass, so
/// that none falls between the list of them and the moment when new ones are ours.
#[rstest]
fn flows_that_open_meanwhile_are_remembered(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, HOLD);
    let (client, vip) = (cast.pod(), cast.vip());
    let unknown_port = SocketAddr::new(vip.ip(), 81);
    for packet in [
        Packet::syn(client, vip),
        Packet::udp(client, vip),
        Packet::data(cast.outsider(), vip),
        Packet::syn(client, unknown_port),
    ] {
        is_left(&datapath, &packet);
    }
    let mut entered = datapath.foreign(family);
    entered.sort_by_key(|(_, _, protocol)| *protocol);
    let of_client = |protocol| (client, vip, protocol);
    assert_eq!(
        entered,
        [of_client(Protocol::TCP), of_client(Protocol::UDP)]
    );

    set(&mut datapath, TAKE_OVER);
    is_left(&datapath, &Packet::syn(client, vip));
    is_left(&datapath, &Packet::udp(client, vip));
    is_ours(&datapath, &Packet::syn(cast.outsider(), vip));
}

/// On the way back, open flows are ours to their end, and kube-proxy gets all others:
/// also fragments, what cannot be read, and what would be refused.
#[rstest]
fn only_open_flows_are_ours_on_the_way_back(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, 0);
    let (client, vip) = (cast.pod(), cast.vip());
    let no_endpoint = cast.vip_with(11, 80);
    datapath.serve(&ServicePort::tcp(no_endpoint, &[]));
    is_ours(&datapath, &Packet::syn(client, vip));
    is_ours(&datapath, &Packet::udp(client, vip));

    set(&mut datapath, GIVE_BACK);
    is_ours(&datapath, &Packet::data(client, vip));
    is_ours(&datapath, &Packet::udp(client, vip));
    let new = cast.pod_with(1, 40_001);
    for packet in [
        Packet::syn(new, vip),
        Packet::data(new, vip),
        Packet::udp(new, vip),
        Packet::udp(new, vip).with_fragment(7, 0, true),
        Packet::syn(new, no_endpoint),
        Packet::syn(new, SocketAddr::new(vip.ip(), 81)),
    ] {
        is_left(&datapath, &packet);
    }
    let fragment = Packet::udp(new, vip).with_fragment(8, 800, false);
    datapath
        .run(Hook::Ingress, &fragment)
        .left_alone(&fragment.bytes());
    assert_eq!(datapath.foreign(family), []);
    // Netfilter's OUTPUT has seen what a process of the host sends, and not translated it.
    let host = SocketAddr::new(cast.node(), 50_000);
    let ran = datapath.run(Hook::HostEgress, &Packet::syn(host, vip));
    let created = ran.counted.get(Counter::FlowCreated.label());
    assert_eq!(created, Some(&1), "{:?}", ran.counted);
    // Nothing that is sent on to another node is taken for untranslated.
    let forwarded = Packet::syn(new, vip);
    datapath.run(Hook::Egress, &forwarded).passed_as(&forwarded);
    assert_eq!(datapath.flows(family).len(), 3);
}

/// A port by which netfilter masquerades a client of the same backend is not ours to
/// take: the replies would look alike.
#[rstest]
fn masquerade_ports_of_known_flows_are_avoided(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] known: bool,
) {
    let cast = Cast::of(family);
    let sizes = Sizes {
        services: 16,
        endpoints: 64,
        flows: 64,
        ..Sizes::DEFAULT
    };
    let mut datapath = Datapath::with_ports(sizes, TWO_PORTS);
    datapath.serve(&ServicePort::udp(cast.vip(), &[cast.endpoint(1)]));
    set(&mut datapath, TAKE_OVER);
    if known {
        datapath.plant_foreign(
            cast.endpoint(1),
            SocketAddr::new(cast.node(), 2000),
            Protocol::UDP,
            Foreign::REPLY,
        );
    }
    for index in 1..=8 {
        let request = Packet::udp(cast.outsider_with(index, 40_000), cast.vip());
        let (_, led) = datapath.run_uncounted(Hook::Ingress, &request.bytes());
        datapath.run_uncounted(Hook::Egress, &led);
    }
    let flows = datapath.flows(family).into_iter();
    let taken = flows.filter(|flow| flow.masquerade.port() == 2000).count();
    assert_eq!(taken == 0, known);
    // The reply goes to netfilter as it came.
    let reply = Packet::udp(cast.endpoint(1), SocketAddr::new(cast.node(), 2000));
    if known {
        datapath
            .run(Hook::Ingress, &reply)
            .left_alone(&reply.bytes());
    }
}

/// Replies to a masqueraded client may come to a port that is also a NodePort.
#[rstest]
fn replies_to_the_port_of_a_node_port_are_left_alone(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, TAKE_OVER);
    let (backend, node) = (cast.endpoint(1), SocketAddr::new(cast.node(), NODE_PORT));
    datapath.plant_foreign(backend, node, Protocol::UDP, Foreign::REPLY);
    is_left(&datapath, &Packet::udp(backend, node));
    is_left(&datapath, &Packet::syn_ack(backend, node));
    is_ours(&datapath, &Packet::udp(cast.endpoint(2), node));
}

/// Netfilter may masquerade a process of the host, or a client outside, by a port that a
/// client of the same backend has from us: it gets another one, and its own answers.
#[rstest]
fn whom_netfilter_masquerades_keeps_its_answers(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(TAKE_OVER, GIVE_BACK)] flags: u32,
    #[values(Hook::HostEgress, Hook::Through)] way: Hook,
    #[values(false, true)] is_frontends_address: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (backend, client) = (cast.endpoint(1), cast.outsider());
    let mut service = ServicePort::udp(cast.vip(), &[backend]);
    if is_frontends_address {
        // The filter knows addresses only, and sends such packets another way.
        let other = SocketAddr::new(backend.ip(), 1);
        service = service.with(Frontend::external_ip(other));
    }
    datapath.serve(&service);
    let request = Packet::udp(client, cast.vip());
    let (_, led) = datapath.run_uncounted(Hook::Ingress, &request.bytes());
    datapath.run_uncounted(Hook::Egress, &led);
    let masquerade = datapath.flows_of(client)[0].masquerade;
    set(&mut datapath, flags);

    let own = Packet::udp(masquerade, backend);
    datapath.load_program("through");
    datapath.run(way, &own);
    let flows = datapath.flows_of(masquerade).into_iter();
    let mut ports = flows.map(|flow| flow.masquerade);
    let other = ports.find(|it| it.port() != 0).expect("another port");
    assert_ne!(other, masquerade);
    for _ in 0..2 {
        let ran = datapath.run(way, &own);
        ran.passed_as(&own.clone().from(other));
        let answer = Packet::udp(backend, other);
        let ran = datapath.run(Hook::Ingress, &answer);
        ran.passed_as(&answer.to(masquerade));
        let answer = Packet::udp(backend, masquerade);
        let ran = datapath.run(Hook::Ingress, &answer);
        ran.passed_as(&answer.to(client));
    }
}
