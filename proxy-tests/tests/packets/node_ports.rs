//! The addresses at which a `NodePort` is served.

use std::net::{IpAddr, SocketAddr};

use proxy_common::local_addr::LocalAddr;
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

use crate::external::NODE_PORT;

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
