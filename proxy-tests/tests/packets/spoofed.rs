//! Packets that their receivers do not believe change no flow.

use std::net::SocketAddr;

use proxy_common::{config::Config, net::Protocol};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Lease, Packet, ServicePort},
};
use rstest::rstest;

/// An established connection of [`Cast::pod`] with endpoint 1.
fn established(cast: Cast) -> Lease {
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &Packet::syn(cast.pod(), cast.vip()));
    datapath.run(Hook::Egress, &Packet::syn_ack(backend, cast.pod()));
    exchange(&datapath, cast);
    datapath
}

/// Data in both directions.
fn exchange(datapath: &Datapath, cast: Cast) {
    let (client, backend) = (cast.pod(), cast.endpoint(1));
    let request = Packet::data(client, cast.vip());
    let ran = datapath.run(Hook::Ingress, &request);
    ran.passed_as(&request.to(backend));
    let reply = Packet::data(backend, client);
    let ran = datapath.run(Hook::Egress, &reply);
    ran.passed_as(&reply.from(cast.vip()));
}

/// Long enough for a connection that is over to be forgotten.
const IDLE: u32 = 70;

/// A reset with a made-up source or sequence number, which its receiver does not
/// believe: what follows it proves it wrong.
#[rstest]
fn a_reset_that_nobody_believed_ends_nothing(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] by_the_client: bool,
    #[values(true, false)] believed: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = established(cast);
    if by_the_client {
        datapath.run(Hook::Ingress, &Packet::rst(cast.pod(), cast.vip()));
    } else {
        datapath.run(Hook::Egress, &Packet::rst(cast.endpoint(1), cast.pod()));
    }
    if !believed {
        exchange(&datapath, cast);
    }
    datapath.age(cast.pod(), IDLE);
    datapath.sweep();
    assert_eq!(datapath.flows_of(cast.pod()).is_empty(), believed);
}

/// Routing may drop a packet of the client's that somebody else has sent, on a connection
/// that nobody uses at the moment: it ends nothing unless it leaves for the backend.
#[rstest]
#[case::a_reset(Packet::rst, false)]
#[case::a_fin(Packet::fin, true)]
fn what_routing_drops_ends_nothing(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] end: fn(SocketAddr, SocketAddr) -> Packet,
    #[case] by_both: bool,
    #[values(true, false)] masqueraded: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.load_program("through");
    if masqueraded {
        datapath.configure(|config| config.flags |= Config::MASQUERADE_ALL);
    }
    let (client, backend) = (cast.pod(), cast.endpoint(1));
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.run(Hook::Through, &Packet::syn(client, cast.vip()));
    let source = if masqueraded {
        datapath.flows_of(client)[0].masquerade
    } else {
        client
    };
    datapath.run(Hook::Through, &Packet::syn_ack(backend, source));
    datapath.run(Hook::Through, &Packet::data(client, cast.vip()));

    datapath.run(Hook::Ingress, &end(client, cast.vip()));
    datapath.age(client, IDLE);
    datapath.sweep();
    let push = Packet::data(backend, client).from(cast.vip());
    let ran = datapath.run(Hook::Through, &Packet::data(backend, source));
    ran.passed_as(&push);

    datapath.run(Hook::Through, &end(client, cast.vip()));
    if by_both {
        datapath.run(Hook::Through, &end(backend, source));
    }
    datapath.age(client, IDLE);
    datapath.sweep();
    assert_eq!(datapath.flows_of(client), []);
}

/// A SYN on a connection that is open is a duplicate, made up, or from a client
/// that was restarted. It moves nothing as long as the backend answers (S79);
/// after that it opens a connection like any other.
#[rstest]
fn a_syn_moves_no_open_connection(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = established(cast);
    let (old, new) = (cast.endpoint(1), cast.endpoint(2));
    datapath.serve(&ServicePort {
        elsewhere: vec![old],
        ..ServicePort::tcp(cast.vip(), &[new])
    });
    datapath.serve(&ServicePort::tcp(cast.vip(), &[new]));
    let syn = Packet::syn(cast.pod(), cast.vip());
    for _ in 0..2 {
        datapath
            .run(Hook::Ingress, &syn)
            .passed_as(&syn.clone().to(old));
        exchange(&datapath, cast);
        datapath.age(cast.pod(), IDLE / 2);
    }
    datapath
        .run(Hook::Ingress, &syn)
        .passed_as(&syn.clone().to(old));
    datapath.age(cast.pod(), IDLE / 2);
    datapath
        .run(Hook::Ingress, &syn)
        .passed_as(&syn.clone().to(new));
}

/// The host throws a packet with a wrong IPv4 header checksum away, so it opens,
/// ends and asks nothing. IPv6 has none.
#[rstest]
fn damaged_ipv4_headers_count_for_nothing(#[values(&[], &[0x8100])] tags: &[u16]) {
    let cast = Cast::of(Family::V4);
    let mut datapath = established(cast);
    datapath.serve(&ServicePort::udp(cast.vip(), &cast.endpoints(1)));
    let datagram = Packet::udp(cast.pod(), cast.vip());
    datapath.run(Hook::Ingress, &datagram);
    let flows = datapath.flows_of(cast.pod());
    let packets = [
        Packet::rst(cast.pod(), cast.vip()),
        Packet::syn(cast.pod_with(2, 40_000), cast.vip()),
        Packet::udp(cast.pod_with(2, 40_000), cast.vip()),
        Packet::udp(cast.pod(), cast.vip_with(10, 81)),
        Packet::udp(cast.pod(), cast.endpoint(1)),
        Packet::echo(cast.pod().ip(), cast.vip().ip()),
    ];
    for packet in packets {
        let mut bytes = Packet {
            tags: tags.to_vec(),
            ..packet
        }
        .bytes();
        bytes[14 + 4 * tags.len() + 10] ^= 1;
        datapath.run_bytes(Hook::Ingress, &bytes).left_alone(&bytes);
    }
    assert_eq!(datapath.flows_of(cast.pod()), flows);
    assert_eq!(datapath.flows(Family::V4).len(), flows.len());
    datapath.age(cast.pod(), IDLE);
    datapath.sweep();
    let open = datapath.flows_of(cast.pod());
    assert!(open.iter().any(|flow| flow.protocol == Protocol::TCP));
}
