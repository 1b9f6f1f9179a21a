//! SCTP: its checksum covers the ports, all of the packet, and no addresses.

use std::net::SocketAddr;

use proxy_common::{counter::Counter, net::Protocol};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort, Verdict, chunk},
};
use rstest::rstest;

/// An endpoint on the frontend's own port, or on another.
fn endpoint(cast: Cast, same_port: bool) -> SocketAddr {
    let mut endpoint = cast.endpoint(1);
    if same_port {
        endpoint.set_port(cast.vip().port());
    }
    endpoint
}

/// Client to frontend and back, with finished checksums, which must be right
/// afterwards, and with those that the network card has yet to fill in, which
/// must still be zero.
#[rstest]
fn both_directions_are_translated_and_nothing_else_changes(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] same_port: bool,
    #[values(true, false)] finished: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = endpoint(cast, same_port);
    datapath.serve(&ServicePort::sctp(cast.vip(), &[backend]));
    let finish = |packet: Packet| {
        if finished {
            packet
        } else {
            packet.unfinished()
        }
    };
    let requests = [
        chunk::INIT,
        chunk::COOKIE_ECHO,
        chunk::DATA,
        chunk::SHUTDOWN,
    ];
    for (nth, kind) in requests.into_iter().enumerate() {
        let request = finish(Packet::sctp(cast.pod(), cast.vip(), kind));
        let ran = datapath.run(Hook::Ingress, &request);
        ran.passed_as(&request.clone().to(backend));
        ran.counted(if nth == 0 {
            &[Counter::FlowCreated]
        } else {
            &[]
        });
        let reply = finish(Packet::sctp(backend, cast.pod(), kind + 1));
        let back = datapath.run(Hook::Egress, &reply);
        back.passed_as(&reply.clone().from(cast.vip()));
        back.counted(&[]);
    }
}

/// The change of the ports lies at the packet's front: what it does to the
/// checksum depends on the length, which padding of the frame is no part of.
#[rstest]
fn packets_of_every_length_are_repaired(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(0, 1, 3, 4, 23, 64, 511, 1024, 1400)] length: usize,
    #[values(0, 7)] padding: usize,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::sctp(cast.vip(), &[cast.endpoint(1)]));
    let data = Packet {
        padding,
        ..Packet::sctp(cast.pod(), cast.vip(), chunk::DATA)
    };
    let data = data.with_payload(
        (0..=u8::MAX)
            .cycle()
            .skip(11)
            .step_by(37)
            .take(length)
            .collect(),
    );
    datapath
        .run(Hook::Ingress, &data)
        .passed_as(&data.clone().to(cast.endpoint(1)));
}

/// Headers of all kinds in front of it.
#[rstest]
#[case::tagged(|packet| Packet { tags: vec![0x8100], ..packet })]
#[case::ip_options_and_extensions(|packet: Packet| match packet.family() {
    Family::V4 => Packet { options: vec![1; 8], ..packet },
    Family::V6 => Packet {
        extensions: vec![proxy_tests::packet::Extension::Destination],
        ..packet
    },
})]
fn headers_in_front_do_not_count(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] with: fn(Packet) -> Packet,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::sctp(cast.vip(), &[cast.endpoint(1)]));
    let init = with(Packet::init(cast.pod(), cast.vip()));
    datapath
        .run(Hook::Ingress, &init)
        .passed_as(&init.clone().to(cast.endpoint(1)));
}

/// Out with the device's address and a port of ours, and back: the port
/// changes in each direction, even where that of the Service does not.
#[rstest]
fn masqueraded_flows_go_out_and_come_back(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] same_port: bool,
    #[values(true, false)] finished: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = endpoint(cast, same_port);
    datapath.serve(&ServicePort::sctp(cast.vip(), &[backend]));
    let finish = |packet: Packet| {
        if finished {
            packet
        } else {
            packet.unfinished()
        }
    };

    let init = finish(Packet::init(cast.outsider(), cast.vip()));
    let led = init.clone().to(backend);
    datapath.run(Hook::Ingress, &init).passed_as(&led);
    let ran = datapath.run(Hook::Egress, &led);
    let masquerade = datapath.flows_of(init.src)[0].masquerade;
    assert_eq!(masquerade.ip(), cast.node());
    ran.passed_as(&led.from(masquerade));

    let reply = finish(Packet::sctp(backend, masquerade, chunk::INIT_ACK));
    let back = reply.clone().to(init.src);
    datapath.run(Hook::Ingress, &reply).passed_as(&back);
    datapath
        .run(Hook::Egress, &back)
        .passed_as(&back.clone().from(cast.vip()));
}

/// The fate of the endpoint of a flow.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Left,
    Aborted,
    ShutDown,
}

/// An association stays where it is (S79); a new one goes to a live endpoint,
/// also on a port that has an old flow.
#[rstest]
fn associations_stay_and_new_ones_go_to_a_live_endpoint(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(End::Left, End::Aborted, End::ShutDown)] end: End,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (old, new) = (cast.endpoint(1), cast.endpoint(2));
    let (client, vip) = (cast.pod(), cast.vip());
    datapath.serve(&ServicePort::sctp(vip, &[old]));
    datapath.run(Hook::Ingress, &Packet::init(client, vip));
    datapath.run(Hook::Egress, &Packet::sctp(old, client, chunk::INIT_ACK));
    datapath.run(
        Hook::Ingress,
        &Packet::sctp(client, vip, chunk::COOKIE_ECHO),
    );
    datapath.serve(&ServicePort::sctp(vip, &[new]));
    match end {
        End::Left => {}
        End::Aborted => {
            datapath.run(Hook::Egress, &Packet::sctp(old, client, chunk::ABORT));
        }
        End::ShutDown => {
            datapath.run(Hook::Ingress, &Packet::sctp(client, vip, chunk::SHUTDOWN));
            datapath.run(
                Hook::Egress,
                &Packet::sctp(old, client, chunk::SHUTDOWN_ACK),
            );
            let last = Packet::sctp(client, vip, chunk::SHUTDOWN_COMPLETE);
            datapath
                .run(Hook::Ingress, &last)
                .passed_as(&last.clone().to(old));
        }
    }
    let data = Packet::sctp(client, vip, chunk::DATA);
    datapath
        .run(Hook::Ingress, &data)
        .passed_as(&data.clone().to(old));
    let init = Packet::init(client, vip);
    let ran = datapath.run(Hook::Ingress, &init);
    ran.passed_as(&init.clone().to(new));
    ran.counted(&[Counter::FlowReselected]);
    assert_eq!(datapath.flows_of(client).len(), 1);
}

/// An association that ended is not opened by the ghost of its last packet.
#[rstest]
fn the_end_of_an_unknown_association_opens_none(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(chunk::ABORT, chunk::SHUTDOWN_COMPLETE)] kind: u8,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::sctp(cast.vip(), &cast.endpoints(1)));
    let ran = datapath.run(Hook::Ingress, &Packet::sctp(cast.pod(), cast.vip(), kind));
    assert_eq!(ran.verdict, Verdict::Drop, "{ran:?}");
    assert_eq!(datapath.flows(family), []);
}

/// Idle times are those of TCP.
#[rstest]
#[case::opening(&[chunk::INIT], &[], 60)]
#[case::established(&[chunk::INIT, chunk::COOKIE_ECHO], &[chunk::INIT_ACK], 1000)]
#[case::aborted(&[chunk::INIT, chunk::COOKIE_ECHO], &[chunk::INIT_ACK, chunk::ABORT], 60)]
#[case::shut_down(
    &[chunk::INIT, chunk::COOKIE_ECHO, chunk::SHUTDOWN],
    &[chunk::INIT_ACK, chunk::SHUTDOWN_ACK],
    60
)]
fn idle_flows_are_swept_by_their_state(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] requests: &[u8],
    #[case] replies: &[u8],
    #[case] ticks: u32,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::sctp(cast.vip(), &[backend]));
    for kind in requests {
        datapath.run(Hook::Ingress, &Packet::sctp(cast.pod(), cast.vip(), *kind));
    }
    for kind in replies {
        datapath.run(Hook::Egress, &Packet::sctp(backend, cast.pod(), *kind));
    }
    datapath.age(cast.pod(), ticks - 2);
    datapath.sweep();
    assert_eq!(datapath.flows_of(cast.pod()).len(), 1);
    datapath.age(cast.pod(), 4);
    datapath.sweep();
    assert_eq!(datapath.flows_of(cast.pod()), []);
}

/// Three protocols on one port are three Service ports (S6).
#[rstest]
fn sctp_has_endpoints_of_its_own(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
    for (index, protocol) in (1..).zip(protocols) {
        let port = ServicePort::new(protocol, cast.vip(), &[cast.endpoint(index)]);
        datapath.serve(&port);
    }
    let packets = [
        Packet::syn(cast.pod(), cast.vip()),
        Packet::udp(cast.pod(), cast.vip()),
        Packet::init(cast.pod(), cast.vip()),
    ];
    for (index, packet) in (1..).zip(packets) {
        datapath
            .run(Hook::Ingress, &packet)
            .passed_as(&packet.clone().to(cast.endpoint(index)));
    }
}

/// Refused as all but TCP, by an ICMP error (S44). It quotes of an INIT what
/// its sender wants to see: the tag that it proposed.
#[rstest]
#[case::no_endpoint(80, Counter::NoEndpoint)]
#[case::unknown_port(81, Counter::UnknownPort)]
fn refused_by_port_unreachable(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
    #[values((chunk::INIT, 20), (chunk::DATA, 12))] (kind, quoted): (u8, usize),
    #[case] port: u16,
    #[case] reason: Counter,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::sctp(cast.vip(), &[]));
    let refused = Packet::sctp(cast.pod(), cast.vip_with(10, port), kind);
    let ran = datapath.run(hook, &refused);
    let error = Packet::port_unreachable(cast.vip().ip(), &refused, quoted);
    ran.answered_by(&error.answering(&refused));
    ran.counted(&[reason]);
}

/// The sender of the quoted packet knows it by its addresses and ports, in
/// both directions. The quoted checksum is nobody's concern and stays.
#[rstest]
fn icmp_errors_are_translated(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(8, 12, 20, 1000)] quoted: usize,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, vip, backend) = (cast.pod(), cast.vip(), cast.endpoint(1));
    datapath.serve(&ServicePort::sctp(vip, &[backend]));
    datapath.run(Hook::Ingress, &Packet::init(client, vip));

    // Unfinished, so that only what may change differs.
    let request = |to| Packet::init(client, to).unfinished();
    let came = Packet::too_big(cast.router(), &request(backend), quoted);
    datapath.run(Hook::Ingress, &came).left_alone(&came.bytes());
    datapath
        .run(Hook::Egress, &came)
        .passed_as(&Packet::too_big(cast.router(), &request(vip), quoted));

    let reply = |from| Packet::sctp(from, client, chunk::DATA).unfinished();
    let came = Packet::too_big(cast.router(), &reply(vip), quoted).to(without_port(vip));
    let ran = datapath.run(Hook::Ingress, &came);
    let mut expected = Packet::too_big(cast.router(), &reply(backend), quoted);
    expected.dst = without_port(backend);
    ran.passed_as(&expected);
}

fn without_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), 0)
}

/// A packet in two fragments. The checksum in the first one covers both.
fn fragments(src: SocketAddr, dst: SocketAddr) -> [Packet; 2] {
    let packet = |payload: u8| {
        Packet::sctp(src, dst, chunk::DATA)
            .with_payload(vec![payload; 64])
            .unfinished()
    };
    [
        packet(1).with_fragment(5, 0, true),
        packet(2).with_fragment(5, 80, false),
    ]
}

/// Fragments pass where no port changes. Where one does, nobody can tell what
/// the checksum is to become before the last one is here: all are dropped.
#[rstest]
fn fragments_pass_only_with_their_ports(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] same_port: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = endpoint(cast, same_port);
    datapath.serve(&ServicePort::sctp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &Packet::init(cast.pod(), cast.vip()));
    let there = fragments(cast.pod(), cast.vip());
    let back = fragments(backend, cast.pod());
    for (hook, [first, later], to) in [
        (Hook::Ingress, there, Some(backend)),
        (Hook::Egress, back, None),
    ] {
        let translated = |packet: &Packet| match to {
            Some(backend) => packet.clone().to(backend),
            None => packet.clone().from(cast.vip()),
        };
        let ran = datapath.run(hook, &first);
        if same_port {
            ran.passed_as(&translated(&first));
            datapath.run(hook, &later).passed_as(&translated(&later));
        } else {
            ran.dropped_for(Counter::SctpFragment);
        }
    }
}

/// Not ours: untouched, whatever it looks like.
#[rstest]
fn other_sctp_is_left_alone(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::sctp(cast.vip(), &cast.endpoints(1)));
    let init = Packet::init(cast.pod(), cast.stranger());
    for hook in [Hook::Ingress, Hook::Egress, Hook::HostEgress] {
        datapath.run(hook, &init).left_alone(&init.bytes());
    }
}
