//! Connections that the node opens itself from the port of a `NodePort`, as
//! netfilter's MASQUERADE makes them: their answers are no clients' packets.

use std::net::SocketAddr;

use proxy_agent::node::settings;
use proxy_common::{flow::ticks_from_seconds, local_addr::LocalAddr};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_080;
/// Long, but not long enough for an established connection.
const HOURS: u32 = 20;

/// A datapath with a NodePort for TCP and UDP, which leads to endpoint 1.
fn datapath(cast: Cast) -> impl std::ops::DerefMut<Target = Datapath> {
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    datapath.configure(|config| config.timeouts = settings::timeouts());
    let endpoints = [cast.endpoint(1)];
    datapath.serve_all(&[
        ServicePort::tcp(cast.vip(), &endpoints).with(Frontend::node_port(NODE_PORT)),
        ServicePort::udp(cast.vip(), &endpoints).with(Frontend::node_port(NODE_PORT)),
    ]);
    datapath
}

fn node(cast: Cast) -> SocketAddr {
    SocketAddr::new(cast.node(), NODE_PORT)
}

/// The packet goes on as it came.
#[track_caller]
fn passes(datapath: &Datapath, hook: Hook, packet: &Packet) {
    datapath.run(hook, packet).passed_as(packet);
}

/// The destination of a connection from a NodePort.
#[derive(Clone, Copy, Debug)]
enum Server {
    Stranger,
    /// Netfilter masquerades what goes to other nodes' pods, too.
    Endpoint,
}

impl Server {
    fn of(self, cast: Cast) -> SocketAddr {
        match self {
            Self::Stranger => cast.stranger(),
            Self::Endpoint => cast.endpoint(1),
        }
    }
}

#[rstest]
fn answers_are_not_taken_for_clients(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Server::Stranger, Server::Endpoint)] server: Server,
) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    let (node, server) = (node(cast), server.of(cast));
    for _ in 0..2 {
        passes(&datapath, Hook::Egress, &Packet::syn(node, server));
        passes(&datapath, Hook::Ingress, &Packet::syn_ack(server, node));
        passes(&datapath, Hook::Egress, &Packet::data(node, server));
        passes(&datapath, Hook::Ingress, &Packet::data(server, node));
        passes(&datapath, Hook::Egress, &Packet::fin(node, server));
        passes(&datapath, Hook::Ingress, &Packet::fin(server, node));
    }
    for _ in 0..2 {
        passes(&datapath, Hook::Egress, &Packet::udp(node, server));
        passes(&datapath, Hook::Ingress, &Packet::udp(server, node));
    }
    let flows = datapath.flows_of(node);
    assert_eq!(flows.len(), 2, "one for each protocol: {flows:?}");
    assert_eq!(datapath.flows(family).len(), 2);
    assert_eq!(datapath.reply_tuples(family), 2);

    // Both are over, or idle, before an established connection would be.
    datapath.age_all(family, ticks_from_seconds(300));
    datapath.sweep();
    assert_eq!(datapath.flows(family), []);
    assert_eq!(datapath.reply_tuples(family), 0);
}

/// A connection that goes on is kept as long as any.
#[rstest]
fn open_connections_last(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    let (node, server) = (node(cast), cast.stranger());
    passes(&datapath, Hook::Egress, &Packet::syn(node, server));
    passes(&datapath, Hook::Ingress, &Packet::syn_ack(server, node));
    datapath.age_all(family, ticks_from_seconds(HOURS * 3600));
    datapath.sweep();
    passes(&datapath, Hook::Ingress, &Packet::data(server, node));

    // From one port to one server comes the next one after it.
    passes(&datapath, Hook::Ingress, &Packet::rst(server, node));
    passes(&datapath, Hook::Egress, &Packet::syn(node, server));
    passes(&datapath, Hook::Ingress, &Packet::syn_ack(server, node));
    datapath.age_all(family, ticks_from_seconds(HOURS * 3600));
    datapath.sweep();
    passes(&datapath, Hook::Ingress, &Packet::data(server, node));
}

/// Others are served meanwhile, and so is the server itself if it connects.
#[rstest]
fn clients_are_served_all_the_same(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = datapath(cast);
    let (node, server) = (node(cast), cast.stranger());
    passes(&datapath, Hook::Egress, &Packet::syn(node, server));
    passes(&datapath, Hook::Egress, &Packet::udp(node, server));
    for request in [
        Packet::syn(cast.outsider(), node),
        Packet::udp(cast.outsider(), node),
        Packet::udp(SocketAddr::new(server.ip(), 9), node),
        Packet::syn(server, node),
    ] {
        let led = request.clone().to(cast.endpoint(1));
        datapath.run(Hook::Ingress, &request).passed_as(&led);
    }
}

/// An answer to a client of the NodePort may pass a second device on its way out.
#[rstest]
fn answers_to_clients_are_no_connections_of_the_node(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let datapath = datapath(cast);
    let (node, client) = (node(cast), cast.pod());
    let request = Packet::udp(client, node);
    let led = request.clone().to(cast.endpoint(1));
    datapath.run(Hook::Ingress, &request).passed_as(&led);
    passes(&datapath, Hook::Egress, &Packet::udp(node, client));
    let flows = datapath.flows(family);
    assert_eq!(flows.len(), 1, "{flows:?}");
    datapath.run(Hook::Ingress, &request).passed_as(&led);
}

/// One port may be used towards many servers; where there is no room for a
/// note, packets leave all the same.
#[rstest]
fn one_port_opens_many_connections(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = datapath(cast);
    let node = node(cast);
    let servers = (1..=20).map(|index| cast.outsider_with(index, 443));
    for server in servers.clone() {
        passes(&datapath, Hook::Egress, &Packet::syn(node, server));
    }
    for server in servers.take(16) {
        passes(&datapath, Hook::Ingress, &Packet::syn_ack(server, node));
    }
    assert_eq!(datapath.flows_of(node).len(), 16);
}

/// Connections from other ports of the node are nobody's business.
#[rstest]
fn other_ports_are_left_alone(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = datapath(cast);
    for own in [
        SocketAddr::new(cast.node(), NODE_PORT + 1),
        // Not an address of this node.
        SocketAddr::new(cast.router(), NODE_PORT),
        SocketAddr::new(cast.pod().ip(), NODE_PORT),
    ] {
        for packet in [
            Packet::syn(own, cast.stranger()),
            Packet::udp(own, cast.stranger()),
        ] {
            let ran = datapath.run(Hook::Egress, &packet);
            ran.left_alone(&packet.bytes());
        }
    }
    assert_eq!(datapath.flows(family), []);
}

/// Netfilter may take a port that a masqueraded connection to the same backend
/// had. While that is open the answers are its own.
#[rstest]
fn connections_that_are_over_give_their_port_away(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] over: bool,
) {
    let cast = Cast::of(family);
    let datapath = datapath(cast);
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    let request = Packet::syn(client, cast.vip());
    let led = request.clone().to(backend);
    datapath.run(Hook::Ingress, &request).passed_as(&led);
    let left = datapath.run(Hook::Egress, &led);
    let masquerade = datapath.flows_of(client)[0].masquerade;
    left.passed_as(&led.from(masquerade));
    if over {
        let reset = Packet::rst(client, cast.vip());
        datapath.run(Hook::Ingress, &reset);
        datapath.run(Hook::Egress, &reset.to(backend));
    }

    passes(&datapath, Hook::Egress, &Packet::syn(masquerade, backend));
    let answer = Packet::syn_ack(backend, masquerade);
    let expected = if over { masquerade } else { client };
    let ran = datapath.run(Hook::Ingress, &answer);
    ran.passed_as(&answer.to(expected));
}

/// A process that binds the port may connect to one server again and again, also a
/// Service's endpoint.
#[rstest]
fn a_process_may_connect_again_from_its_port(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Server::Stranger, Server::Endpoint)] server: Server,
) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    let (node, server) = (node(cast), server.of(cast));
    for _ in 0..2 {
        passes(&datapath, Hook::HostEgress, &Packet::syn(node, server));
        passes(&datapath, Hook::Ingress, &Packet::syn_ack(server, node));
        passes(&datapath, Hook::HostEgress, &Packet::data(node, server));
        datapath.age_all(family, ticks_from_seconds(HOURS * 3600));
        datapath.sweep();
        passes(&datapath, Hook::Ingress, &Packet::data(server, node));
        passes(&datapath, Hook::HostEgress, &Packet::fin(node, server));
        passes(&datapath, Hook::Ingress, &Packet::fin(server, node));
    }
}

/// A server that connects back from the same port has the other connection no
/// more: all its packets are a client's, whatever way they take.
#[rstest]
fn a_server_that_connects_back_is_a_client(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(&[], &[0x8100])] tags: &[u16],
) {
    let cast = Cast::of(family);
    let datapath = datapath(cast);
    let (node, server) = (node(cast), cast.stranger());
    passes(&datapath, Hook::Egress, &Packet::syn(node, server));
    for packet in [Packet::syn(server, node), Packet::data(server, node)] {
        let packet = Packet {
            tags: tags.to_vec(),
            ..packet
        };
        let led = packet.clone().to(cast.endpoint(1));
        datapath.run(Hook::Ingress, &packet).passed_as(&led);
    }
    assert_eq!(datapath.flows_of(node), []);
    assert_eq!(datapath.reply_tuples(family), 0);
}

/// Errors about such connections are for the node itself.
#[rstest]
fn errors_about_them_are_left_alone(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = datapath(cast);
    let (node, server) = (node(cast), cast.stranger());
    passes(&datapath, Hook::Egress, &Packet::syn(node, server));
    let error = Packet::too_big(cast.router(), &Packet::data(node, server), 8);
    let ran = datapath.run(Hook::Ingress, &error);
    ran.left_alone(&error.bytes());
}

/// A packet that came in with such a source is another's, and noted nowhere: not if
/// it is addressed to a port that a frontend's address does not have, nor if it is a
/// fragment whose ports only egress knows.
#[rstest]
fn pretended_sources_are_not_noted(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    datapath.load_program("through");
    let (node, client) = (node(cast), cast.stranger());
    let own = SocketAddr::new(node.ip(), 8080);
    datapath
        .serve(&ServicePort::udp(cast.vip_with(2, 53), &[own]).with(Frontend::external_ip(client)));
    let other = SocketAddr::new(client.ip(), client.port() + 1);
    passes(&datapath, Hook::Through, &Packet::udp(node, other));
    assert_eq!(datapath.flows_of(node), [], "to another port");

    // The node has sent the client fragments of a Service.
    let client = cast.outsider();
    datapath.run(Hook::Ingress, &Packet::udp(client, cast.vip_with(2, 53)));
    let parts = |packet: Packet, id| {
        let packet = packet.with_payload(vec![0; 64]);
        [
            packet.clone().with_fragment(id, 0, true),
            packet.with_fragment(id, 72, false),
        ]
    };
    let [first, _] = parts(Packet::udp(own, client), 1);
    datapath.run(Hook::HostEgress, &first);
    let [first, later] = parts(Packet::udp(node, client), 2);
    passes(&datapath, Hook::Through, &first);
    passes(&datapath, Hook::Through, &later);
    assert_eq!(datapath.flows_of(node), [], "in a fragment");
}
