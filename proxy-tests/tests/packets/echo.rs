//! Addresses of Services behave like hosts: they answer pings, and refuse what
//! no Service has.

use std::net::SocketAddr;

use proxy_common::{counter::Counter, local_addr::LocalAddr};
use proxy_tests::{
    Family,
    packet::{
        Body, Cast, Datapath, Frontend, Hook, Lease, MAC_OTHER, Packet, ServicePort, Verdict,
    },
};
use rstest::rstest;

/// A Service with a cluster IP, an external IP and one of a load balancer.
fn serve(cast: Cast) -> (Lease, [SocketAddr; 3]) {
    let mut datapath = Datapath::load();
    let addresses = [cast.vip(), cast.vip_with(11, 80), cast.vip_with(12, 80)];
    let [cluster_ip, external_ip, load_balancer] = addresses;
    let port = ServicePort::tcp(cluster_ip, &cast.endpoints(1))
        .with(Frontend::external_ip(external_ip))
        .with(Frontend::load_balancer(load_balancer));
    datapath.serve(&port);
    (datapath, addresses)
}

/// From pods, external clients and the host's own processes, with payloads of
/// any length.
#[rstest]
fn pings_are_answered(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
    #[values(0, 1, 56, 1400)] length: usize,
) {
    let cast = Cast::of(family);
    let (datapath, [cluster_ip, _, load_balancer]) = serve(cast);
    for client in [cast.pod(), cast.outsider()] {
        for address in [cluster_ip, load_balancer] {
            let request = Packet::echo(client.ip(), address.ip()).with_payload(vec![0xa7; length]);
            let ran = datapath.run(hook, &request);
            ran.answered_by(&Packet::echo_reply(&request));
            ran.counted(&[Counter::EchoAnswered]);
        }
    }
    assert_eq!(datapath.flows(family), []);
}

/// Also in frames with VLAN tags.
#[rstest]
fn tagged_pings_are_answered(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(1, 2)] tags: usize,
) {
    let cast = Cast::of(family);
    let (datapath, [cluster_ip, ..]) = serve(cast);
    let request = Packet {
        tags: [0x88a8, 0x8100][2 - tags..].to_vec(),
        ..Packet::echo(cast.pod().ip(), cluster_ip.ip())
    };
    datapath
        .run(Hook::Ingress, &request)
        .answered_by(&Packet::echo_reply(&request));
}

/// A ping that is too long for one packet is answered fragment by fragment, in
/// whatever order the later ones come.
#[rstest]
fn fragments_of_a_ping_are_answered(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
    #[values([0, 1, 2], [0, 2, 1])] order: [usize; 3],
) {
    let cast = Cast::of(family);
    let (datapath, [cluster_ip, ..]) = serve(cast);
    let part = |byte, offset, more| {
        Packet::echo(cast.pod().ip(), cluster_ip.ip())
            .with_payload(vec![byte; 64])
            .with_fragment(7, offset, more)
    };
    let parts = [part(1, 0, true), part(2, 72, true), part(3, 136, false)];
    for index in order {
        let ran = datapath.run(hook, &parts[index]);
        ran.answered_by(&Packet::echo_reply(&parts[index]));
        ran.counted(if index == 0 {
            &[Counter::EchoAnswered]
        } else {
            &[]
        });
    }
    let unknown = part(2, 72, true).with_fragment(8, 72, true);
    datapath
        .run(hook, &unknown)
        .dropped_for(Counter::FragmentUnknown);
}

/// An address that this node has itself is the host's own to answer for; what
/// an external IP is besides is not known (S48).
#[rstest]
fn other_addresses_are_left_alone(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
) {
    let cast = Cast::of(family);
    let (mut datapath, [cluster_ip, external_ip, load_balancer]) = serve(cast);
    datapath.local_addr(load_balancer.ip(), 0);
    // A cluster IP is never a host's, even where one of IPVS was left behind.
    datapath.local_addr(cluster_ip.ip(), LocalAddr::NODE_PORTS);
    for address in [external_ip, load_balancer] {
        let other_port = SocketAddr::new(address.ip(), 81);
        let packets = [
            Packet::echo(cast.pod().ip(), address.ip()),
            Packet::syn(cast.pod(), other_port),
            Packet::udp(cast.pod(), other_port),
        ];
        for packet in packets {
            datapath.run(hook, &packet).left_alone(&packet.bytes());
        }
    }
    let request = Packet::echo(cast.pod().ip(), cluster_ip.ip());
    datapath
        .run(hook, &request)
        .answered_by(&Packet::echo_reply(&request));
}

/// A load balancer's address that this node does not have would be routed back
/// to where the packet came from, and again here: its other ports are refused.
#[rstest]
fn other_ports_of_a_load_balancer_are_refused(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
) {
    let cast = Cast::of(family);
    let (datapath, [.., load_balancer]) = serve(cast);
    let other_port = SocketAddr::new(load_balancer.ip(), 81);
    let datagram = Packet::udp(cast.outsider(), other_port);
    let ran = datapath.run(hook, &datagram);
    let error = Packet::port_unreachable(other_port.ip(), &datagram, 8);
    ran.answered_by(&error.answering(&datagram));
    ran.counted(&[Counter::UnknownPort]);
    let ran = datapath.run(hook, &Packet::syn(cast.outsider(), other_port));
    assert_eq!(ran.verdict, Verdict::Redirect);
    ran.counted(&[Counter::UnknownPort]);
}

/// With options or extensions, which would have to be turned round, too, a
/// request is refused like any other protocol.
#[rstest]
fn pings_with_more_headers_are_refused(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let (datapath, [cluster_ip, ..]) = serve(cast);
    let plain = Packet::echo(cast.pod().ip(), cluster_ip.ip());
    let request = match family {
        Family::V4 => Packet {
            options: vec![1; 4],
            ..plain
        },
        Family::V6 => Packet {
            extensions: vec![proxy_tests::packet::Extension::Routing],
            ..plain
        },
    };
    let ran = datapath.run(Hook::Ingress, &request);
    let error = Packet::port_unreachable(cluster_ip.ip(), &request, 8);
    ran.answered_by(&error.answering(&request));
    ran.counted(&[Counter::UnknownPort]);
}

/// Frames to many and to others, and what passes through on the way out.
#[rstest]
#[case::broadcast(Hook::Ingress, [0xff; 6])]
#[case::another_host(Hook::Ingress, MAC_OTHER)]
#[case::forwarded(Hook::Egress, MAC_OTHER)]
fn pings_that_are_not_for_us_are_left_alone(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] hook: Hook,
    #[case] mac_dst: [u8; 6],
) {
    let cast = Cast::of(family);
    let (datapath, [cluster_ip, ..]) = serve(cast);
    let request = Packet {
        mac_dst,
        ..Packet::echo(cast.pod().ip(), cluster_ip.ip())
    };
    datapath.run(hook, &request).left_alone(&request.bytes());
}

/// Messages that keep an IPv6 link running pass, also to the very address: neighbours
/// probe each other by unicast (E31).
#[rstest]
fn neighbour_discovery_and_group_membership_pass(
    #[values(Hook::Ingress, Hook::Egress, Hook::HostEgress)] hook: Hook,
    #[values(130, 131, 132, 133, 134, 135, 136, 143)] kind: u8,
) {
    let cast = Cast::of(Family::V6);
    let (datapath, [cluster_ip, ..]) = serve(cast);
    let mut packet = Packet::echo(cast.pod().ip(), cluster_ip.ip());
    packet.body = Body::Icmp {
        kind,
        code: 0,
        rest: 0,
    };
    datapath.run(hook, &packet).left_alone(&packet.bytes());
}
