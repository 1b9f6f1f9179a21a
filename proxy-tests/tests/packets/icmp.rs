//! ICMP errors about translated packets: their receiver must recognise the
//! packet they quote.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{counter::Counter, local_addr::LocalAddr};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

/// Makes an error about a packet.
type Error = fn(IpAddr, &Packet, usize) -> Packet;

/// Bytes of the transport header and payload that are quoted: as few as may
/// be, TCP's header, or more than there is.
const QUOTED: [usize; 3] = [8, 20, 1000];

const TCP: bool = true;
const NODE_PORT: u16 = 30_080;

fn data(tcp: bool, src: SocketAddr, dst: SocketAddr) -> Packet {
    if tcp {
        Packet::data(src, dst)
    } else {
        Packet::udp(src, dst)
    }
}

/// Serves the frontend by one backend and leads a packet of the client there.
fn open(cast: Cast, client: SocketAddr, tcp: bool) -> impl std::ops::Deref<Target = Datapath> {
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let request = data(tcp, client, cast.vip());
    let led = request.clone().to(backend);
    datapath.run(Hook::Ingress, &request).passed_as(&led);
    datapath.run(Hook::Egress, &led);
    datapath
}

/// A router between node and backend, or the backend itself, has bad news for
/// the client: about a packet to the frontend.
#[rstest]
#[case::too_big(Packet::too_big)]
#[case::port_unreachable(Packet::port_unreachable)]
#[case::time_exceeded(Packet::time_exceeded)]
fn errors_about_requests_reach_the_client(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] error: Error,
    #[values(true, false)] tcp: bool,
    #[values(true, false)] by_the_backend: bool,
) {
    let cast = Cast::of(family);
    let (client, backend) = (cast.pod(), cast.endpoint(1));
    let datapath = open(cast, client, tcp);
    let (sender, seen) = if by_the_backend {
        (backend.ip(), cast.vip().ip())
    } else {
        (cast.router(), cast.router())
    };
    for quoted in QUOTED {
        let came = error(sender, &data(tcp, client, backend), quoted);
        datapath.run(Hook::Ingress, &came).left_alone(&came.bytes());
        let ran = datapath.run(Hook::Egress, &came);
        ran.passed_as(&error(seen, &data(tcp, client, cast.vip()), quoted));
        ran.counted(&[Counter::IcmpErrorTranslated]);
    }
}

/// A masqueraded request: the error is for the masquerade address first.
#[rstest]
#[case::too_big(Packet::too_big)]
#[case::port_unreachable(Packet::port_unreachable)]
#[case::time_exceeded(Packet::time_exceeded)]
fn errors_about_masqueraded_requests_reach_the_client(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] error: Error,
    #[values(true, false)] tcp: bool,
) {
    let cast = Cast::of(family);
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    let datapath = open(cast, client, tcp);
    let masquerade = datapath.flows_of(client)[0].masquerade;
    for quoted in QUOTED {
        let came = error(cast.router(), &data(tcp, masquerade, backend), quoted);
        let inside = error(cast.router(), &data(tcp, client, backend), quoted);
        let left = error(cast.router(), &data(tcp, client, cast.vip()), quoted);
        datapath.run(Hook::Ingress, &came).passed_as(&inside);
        datapath.run(Hook::Egress, &inside).passed_as(&left);
    }
}

/// The client's side has bad news for the backend: about its reply.
#[rstest]
#[case::too_big(Packet::too_big)]
#[case::port_unreachable(Packet::port_unreachable)]
#[case::time_exceeded(Packet::time_exceeded)]
fn errors_about_replies_reach_the_backend(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] error: Error,
    #[values(true, false)] tcp: bool,
    #[values(true, false)] by_the_client: bool,
) {
    let cast = Cast::of(family);
    let (client, backend) = (cast.pod(), cast.endpoint(1));
    let datapath = open(cast, client, tcp);
    let sender = if by_the_client {
        client.ip()
    } else {
        cast.router()
    };
    for quoted in QUOTED {
        let came = error(sender, &data(tcp, cast.vip(), client), quoted);
        let led = error(sender, &data(tcp, backend, client), quoted);
        datapath.run(Hook::Ingress, &came).passed_as(&led);
        let ran = datapath.run(Hook::Egress, &led);
        ran.passed_as(&led);
    }
}

/// The same for a frontend at an address of this node.
#[rstest]
fn errors_about_replies_of_node_ports_reach_the_backend(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    let cast = Cast::of(family);
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    let destination = SocketAddr::new(cast.node(), NODE_PORT);
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    // Its bit in the filter stays for a while.
    let gone = SocketAddr::new(cast.stranger().ip(), 80);
    let gone = ServicePort::tcp(cast.vip_with(11, 80), &[]).with(Frontend::external_ip(gone));
    datapath.serve(&gone);
    datapath.unserve(&gone);
    let of = if tcp {
        ServicePort::tcp
    } else {
        ServicePort::udp
    };
    let port = of(cast.vip(), &[backend]).with(Frontend::node_port(NODE_PORT));
    datapath.serve(&port);
    datapath.run(Hook::Ingress, &data(tcp, client, destination));
    for quoted in QUOTED {
        let came = Packet::too_big(cast.router(), &data(tcp, destination, client), quoted);
        let led = Packet::too_big(cast.router(), &data(tcp, backend, client), quoted);
        datapath.run(Hook::Ingress, &came).passed_as(&led);
        // About another conversation, or not meant for this node.
        let other = data(tcp, destination, cast.outsider_with(2, 40_000));
        let other = Packet::too_big(cast.router(), &other, quoted);
        let elsewhere = came.to(SocketAddr::new(cast.stranger().ip(), 0));
        for packet in [other, elsewhere] {
            let ran = datapath.run(Hook::Ingress, &packet);
            ran.left_alone(&packet.bytes());
        }
    }
}

/// The backend of a masqueraded flow knows the client by another address.
#[rstest]
fn errors_about_masqueraded_replies_reach_the_backend(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
    #[values(true, false)] by_the_client: bool,
) {
    let cast = Cast::of(family);
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    let datapath = open(cast, client, tcp);
    let masquerade = datapath.flows_of(client)[0].masquerade;
    let (sender, seen) = if by_the_client {
        (client.ip(), masquerade.ip())
    } else {
        (cast.router(), cast.router())
    };
    for quoted in QUOTED {
        let came = Packet::too_big(sender, &data(tcp, cast.vip(), client), quoted);
        let inside = Packet::too_big(sender, &data(tcp, backend, client), quoted);
        let left = Packet::too_big(seen, &data(tcp, backend, masquerade), quoted);
        datapath.run(Hook::Ingress, &came).passed_as(&inside);
        datapath.run(Hook::Egress, &inside).passed_as(&left);
    }
}

/// Bytes of the frame behind an error are no part of the packet that the error quotes.
#[rstest]
fn bytes_behind_an_error_are_not_looked_at(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
    #[values(2, 8, 10, 16)] padding: usize,
) {
    let cast = Cast::of(family);
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    let datapath = open(cast, client, tcp);
    let masquerade = datapath.flows_of(client)[0].masquerade;
    let error = |about| Packet {
        padding,
        ..Packet::too_big(cast.router(), &about, 8)
    };
    let came = error(data(tcp, masquerade, backend));
    let inside = error(data(tcp, client, backend));
    datapath.run(Hook::Ingress, &came).passed_as(&inside);
    let left = error(data(tcp, client, cast.vip()));
    datapath.run(Hook::Egress, &inside).passed_as(&left);

    let came = error(data(tcp, cast.vip(), client));
    let inside = error(data(tcp, backend, client));
    datapath.run(Hook::Ingress, &came).passed_as(&inside);
    let left = error(data(tcp, backend, masquerade));
    datapath.run(Hook::Egress, &inside).passed_as(&left);
}

/// A redirect about a translated packet would move the frontend's address to
/// another machine (E3).
#[rstest]
fn redirects_about_our_flows_are_dropped(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    let cast = Cast::of(family);
    let datapath = open(cast, cast.pod(), tcp);
    let redirect = Packet::redirect(cast.router(), &data(tcp, cast.pod(), cast.endpoint(1)));
    datapath
        .run(Hook::Egress, &redirect)
        .dropped_for(Counter::RedirectDropped);
}

/// Errors and redirects about other packets are none of our business.
#[rstest]
fn errors_about_other_packets_pass(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = open(cast, cast.pod(), TCP);
    let about = [
        Packet::data(cast.pod(), cast.stranger()),
        Packet::data(cast.stranger(), cast.pod()),
        // The right client, but another port of it.
        Packet::data(cast.pod_with(1, 40_001), cast.endpoint(1)),
        Packet::data(cast.pod_with(1, 40_001), cast.vip()),
    ];
    for about in &about {
        let errors = [
            Packet::too_big(cast.router(), about, 8),
            Packet::redirect(cast.router(), about),
        ];
        for error in errors {
            for hook in [Hook::Ingress, Hook::Egress] {
                datapath.run(hook, &error).left_alone(&error.bytes());
            }
        }
    }
}
