//! Client to frontend and back.

use std::net::SocketAddr;

use proxy_common::{counter::Counter, net::Protocol};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort},
};
use rstest::rstest;

/// The first packet of a flow reaches a backend, the reply comes from the
/// frontend, and nothing else in either of them changes.
#[rstest]
fn both_directions_are_translated_and_nothing_else_changes(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Protocol::TCP, Protocol::UDP)] protocol: Protocol,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::new(protocol, cast.vip(), &[backend]));
    let (request, reply) = match protocol {
        Protocol::TCP => (
            Packet::syn(cast.pod(), cast.vip()),
            Packet::syn_ack(backend, cast.pod()),
        ),
        _ => (
            Packet::udp(cast.pod(), cast.vip()),
            Packet::udp(backend, cast.pod()),
        ),
    };

    let ran = datapath.run(Hook::Ingress, &request);
    ran.passed_as(&request.clone().to(backend));
    ran.counted(&[Counter::FlowCreated]);
    let again = datapath.run(Hook::Ingress, &request);
    again.passed_as(&request.clone().to(backend));
    again.counted(&[]);
    let back = datapath.run(Hook::Egress, &reply);
    back.passed_as(&reply.clone().from(cast.vip()));
    back.counted(&[]);
}

/// Same tuple, same backend: also when its record is gone.
#[rstest]
fn a_flow_whose_record_was_lost_finds_its_backend_again(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(50)));
    for port in 40_000..40_020 {
        let client = cast.pod_with(1, port);
        datapath.run(Hook::Ingress, &Packet::syn(client, cast.vip()));
        let before = datapath.flows_of(client);
        datapath.forget_flows();
        let ran = datapath.run(Hook::Ingress, &Packet::data(client, cast.vip()));
        ran.passed_as(&Packet::data(client, before[0].backend));
        assert_eq!(datapath.flows_of(client), before);
    }
}

/// Chi-squared over 5,000 flows to 7 backends.
#[rstest]
fn flows_spread_evenly_over_the_backends(#[values(Family::V4, Family::V6)] family: Family) {
    const FLOWS: u16 = 5000;
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backends = cast.endpoints(7);
    datapath.serve(&ServicePort::tcp(cast.vip(), &backends));
    for port in 0..FLOWS {
        let syn = Packet::syn(cast.pod_with(1, 20_000 + port), cast.vip());
        datapath.run_uncounted(Hook::Ingress, &syn.bytes());
    }
    let flows = datapath.flows(family);
    assert_eq!(flows.len(), usize::from(FLOWS));
    let expected = f64::from(FLOWS) / 7.0;
    let chi: f64 = backends
        .iter()
        .map(|backend| flows.iter().filter(|flow| flow.backend == *backend).count())
        .map(|count| (f64::from(u32::try_from(count).expect("few")) - expected).powi(2) / expected)
        .sum();
    // Six degrees of freedom: below this in 99.9 %. The hash key is fixed.
    assert!(chi < 22.5, "{chi}");
}

/// A change of the set moves no open TCP connection (S79).
#[rstest]
fn tcp_stays_with_a_backend_that_left(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let old = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[old]));
    datapath.run(Hook::Ingress, &Packet::syn(cast.pod(), cast.vip()));
    datapath.run(Hook::Egress, &Packet::syn_ack(old, cast.pod()));
    datapath.serve(&ServicePort::tcp(cast.vip(), &[cast.endpoint(2)]));

    let data = Packet::data(cast.pod(), cast.vip());
    datapath
        .run(Hook::Ingress, &data)
        .passed_as(&data.clone().to(old));
    let reply = Packet::data(old, cast.pod());
    datapath
        .run(Hook::Egress, &reply)
        .passed_as(&reply.clone().from(cast.vip()));
}

/// UDP leaves a backend that left, with the next packet (S77).
#[rstest]
fn udp_leaves_a_backend_that_left(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (old, new) = (cast.endpoint(1), cast.endpoint(2));
    let packet = Packet::udp(cast.pod(), cast.vip());
    datapath.serve(&ServicePort::udp(cast.vip(), &[old]));
    datapath
        .run(Hook::Ingress, &packet)
        .passed_as(&packet.clone().to(old));
    datapath.serve(&ServicePort::udp(cast.vip(), &[new]));
    let ran = datapath.run(Hook::Ingress, &packet);
    ran.passed_as(&packet.clone().to(new));
    ran.counted(&[Counter::FlowReselected]);
    datapath.serve(&ServicePort::udp(cast.vip(), &[]));
    datapath
        .run(Hook::Ingress, &packet)
        .answered_by(&Packet::port_unreachable(cast.vip().ip(), &packet, 8).answering(&packet));
    assert_eq!(datapath.flows_of(cast.pod()), []);
}

/// The address stays and only its port is another: that is another endpoint
/// (S77).
#[rstest]
fn udp_follows_a_changed_port(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let old = cast.endpoint(1);
    let new = SocketAddr::new(old.ip(), old.port() + 1);
    let packet = Packet::udp(cast.pod(), cast.vip());
    datapath.serve(&ServicePort::udp(cast.vip(), &[old]));
    datapath
        .run(Hook::Ingress, &packet)
        .passed_as(&packet.clone().to(old));
    datapath.serve(&ServicePort::udp(cast.vip(), &[new]));
    let ran = datapath.run(Hook::Ingress, &packet);
    ran.passed_as(&packet.clone().to(new));
    ran.counted(&[Counter::FlowReselected]);
    let reply = Packet::udp(new, cast.pod());
    datapath
        .run(Hook::Egress, &reply)
        .passed_as(&reply.clone().from(cast.vip()));
}

/// An endpoint that serves, but is for no new flow, keeps the UDP flows that it
/// has until it serves no more (S77).
#[rstest]
fn udp_stays_while_its_backend_drains(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (old, new) = (cast.endpoint(1), cast.endpoint(2));
    let packet = Packet::udp(cast.pod(), cast.vip());
    datapath.serve(&ServicePort::udp(cast.vip(), &[old]));
    datapath.run(Hook::Ingress, &packet);
    let mut draining = ServicePort::udp(cast.vip(), &[new]);
    draining.elsewhere = vec![old];
    datapath.serve(&draining);
    let ran = datapath.run(Hook::Ingress, &packet);
    ran.passed_as(&packet.clone().to(old));
    ran.counted(&[]);
    let reply = Packet::udp(old, cast.pod());
    datapath
        .run(Hook::Egress, &reply)
        .passed_as(&reply.clone().from(cast.vip()));
    for port in 41_000..41_020 {
        let other = Packet::udp(cast.pod_with(1, port), cast.vip());
        datapath
            .run(Hook::Ingress, &other)
            .passed_as(&other.clone().to(new));
    }
    datapath.serve(&ServicePort::udp(cast.vip(), &[new]));
    datapath
        .run(Hook::Ingress, &packet)
        .passed_as(&packet.clone().to(new));
}

/// Each packet is looked up anew as long as there is no record, so that what
/// came before the Service was there spoils nothing (S84, S84a). A TCP
/// connection that is open by then is led to a backend, which knows nothing of
/// it.
#[rstest]
fn a_flow_from_before_the_service_is_translated(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    let (port, packet): (_, fn(_, _) -> _) = if tcp {
        (ServicePort::tcp(cast.vip(), &[backend]), Packet::data)
    } else {
        (ServicePort::udp(cast.vip(), &[backend]), Packet::udp)
    };
    let request = packet(cast.pod(), cast.vip());
    let answer = packet(cast.vip(), cast.pod());
    datapath
        .run(Hook::Ingress, &request)
        .left_alone(&request.bytes());
    datapath
        .run(Hook::Egress, &answer)
        .left_alone(&answer.bytes());
    assert_eq!(datapath.flows(family), []);

    datapath.serve(&port);
    let ran = datapath.run(Hook::Ingress, &request);
    ran.passed_as(&request.clone().to(backend));
    ran.counted(&[Counter::FlowCreated]);
    let reply = packet(backend, cast.pod());
    datapath
        .run(Hook::Egress, &reply)
        .passed_as(&reply.clone().from(cast.vip()));
}

/// A connection attempt that no backend answered is not tied to a dead one.
#[rstest]
fn a_repeated_syn_leaves_a_dead_backend(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let syn = Packet::syn(cast.pod(), cast.vip());
    datapath.serve(&ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]));
    datapath.run(Hook::Ingress, &syn);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[cast.endpoint(2)]));
    let ran = datapath.run(Hook::Ingress, &syn);
    ran.passed_as(&syn.clone().to(cast.endpoint(2)));
    assert_eq!(datapath.flows_of(cast.pod())[0].backend, cast.endpoint(2));
}

/// A client port that is used again after its connection closed gets a
/// connection of its own.
#[rstest]
#[case::by_both_fins(&[])]
#[case::by_a_reset(&[()])]
fn a_syn_on_a_closed_flow_chooses_anew(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] reset: &[()],
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (old, new) = (cast.endpoint(1), cast.endpoint(2));
    let syn = Packet::syn(cast.pod(), cast.vip());
    datapath.serve(&ServicePort::tcp(cast.vip(), &[old]));
    datapath.run(Hook::Ingress, &syn);
    datapath.run(Hook::Egress, &Packet::syn_ack(old, cast.pod()));
    datapath.run(Hook::Ingress, &Packet::data(cast.pod(), cast.vip()));
    if reset.is_empty() {
        datapath.run(Hook::Ingress, &Packet::fin(cast.pod(), cast.vip()));
        datapath.run(Hook::Egress, &Packet::fin(old, cast.pod()));
    } else {
        datapath.run(Hook::Egress, &Packet::rst(old, cast.pod()));
    }
    datapath.serve(&ServicePort::tcp(cast.vip(), &[new]));

    datapath
        .run(Hook::Ingress, &syn)
        .passed_as(&syn.clone().to(new));
    let reply = Packet::syn_ack(new, cast.pod());
    datapath
        .run(Hook::Egress, &reply)
        .passed_as(&reply.clone().from(cast.vip()));
}

/// A client that was restarted uses the port of a connection it does not
/// remember: the backend's answer to its SYN must reach it.
#[rstest]
fn a_syn_on_an_open_flow_is_answered(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    let (syn, syn_ack) = (
        Packet::syn(cast.pod(), cast.vip()),
        Packet::syn_ack(backend, cast.pod()),
    );
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &syn);
    datapath.run(Hook::Egress, &syn_ack);
    datapath.run(Hook::Ingress, &Packet::data(cast.pod(), cast.vip()));
    datapath.run(Hook::Egress, &Packet::data(backend, cast.pod()));

    datapath
        .run(Hook::Ingress, &syn)
        .passed_as(&syn.clone().to(backend));
    datapath
        .run(Hook::Egress, &syn_ack)
        .passed_as(&syn_ack.clone().from(cast.vip()));
}
