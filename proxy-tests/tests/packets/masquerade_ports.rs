//! Many masqueraded flows to one backend: every one of them needs a port.

use std::{collections::BTreeSet, net::SocketAddr};

use proxy_agent::dataplane::load::Sizes;
use proxy_common::{counter::Counter, masquerade::PortRange};
use proxy_tests::{
    Family, exec, name,
    netns::Netns,
    packet::{Body, Cast, Datapath, Hook, Lease, Packet, ServicePort, Verdict},
};
use rstest::rstest;
use socket2::{Domain, Socket, Type};

const SOME_PORTS: PortRange = PortRange::new(10_000, 11_999).unwrap();
const TWO_PORTS: PortRange = PortRange::new(2000, 2001).unwrap();

/// A datapath with room for `flows`, and a port of TCP and UDP with one backend.
fn datapath(cast: Cast, flows: u32, ports: PortRange) -> Datapath {
    let sizes = Sizes {
        services: 16,
        endpoints: 64,
        flows,
        ..Sizes::DEFAULT
    };
    let mut datapath = Datapath::with_ports(sizes, ports);
    serve(&mut datapath, cast);
    datapath
}

/// The same with the usual sizes and ports.
fn usual(cast: Cast) -> Lease {
    let mut datapath = Datapath::load();
    serve(&mut datapath, cast);
    datapath
}

fn serve(datapath: &mut Datapath, cast: Cast) {
    let endpoints = [cast.endpoint(1)];
    datapath.serve(&ServicePort::tcp(cast.vip(), &endpoints));
    datapath.serve(&ServicePort::udp(cast.vip(), &endpoints));
}

/// Leads a client's first packet to the backend. Returns the source that it leaves with;
/// `None` if it does not leave.
fn lead(datapath: &Datapath, cast: Cast, first: &Packet) -> Option<SocketAddr> {
    let (verdict, led) = datapath.run_uncounted(Hook::Ingress, &first.bytes());
    assert_eq!(verdict, Verdict::Next, "{first:?}");
    let (verdict, sent) = datapath.run_uncounted(Hook::Egress, &led);
    (verdict == Verdict::Next).then(|| source(cast, &sent))
}

/// Returns the source address and port of a packet without options.
fn source(cast: Cast, packet: &[u8]) -> SocketAddr {
    let l4 = if cast.family == Family::V4 { 34 } else { 54 };
    let port = u16::from_be_bytes([packet[l4], packet[l4 + 1]]);
    SocketAddr::new(cast.node(), port)
}

/// Connections that are over hold no port that a new one needs: of six times
/// six thousand within a minute none is lost; nor where there are fewer ports.
#[rstest]
#[case::all(PortRange::UNPRIVILEGED, 1000)]
#[case::few(SOME_PORTS, 100)]
fn closed_connections_hold_no_ports(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] ports: PortRange,
    #[case] each: u16,
) {
    let cast = Cast::of(family);
    let datapath = datapath(cast, 131_072, ports);
    let (frontend, backend) = (cast.vip(), cast.endpoint(1));
    let mut lost = Vec::new();
    for batch in 0..6 {
        let mut dropped = 0;
        for host in 1..=6 {
            for port in 0..each {
                let client = cast.outsider_with(host, 1024 + batch * each + port);
                let syn = Packet::syn(client, frontend);
                let Some(masquerade) = lead(&datapath, cast, &syn) else {
                    dropped += 1;
                    continue;
                };
                close(&datapath, client, frontend, masquerade, backend);
            }
        }
        lost.push(dropped);
    }
    assert_eq!(lost, [0; 6]);
}

/// Both ends of a connection say that they are done.
fn close(
    datapath: &Datapath,
    client: SocketAddr,
    frontend: SocketAddr,
    masquerade: SocketAddr,
    backend: SocketAddr,
) {
    let there = Packet::fin(client, frontend).bytes();
    let (_, led) = datapath.run_uncounted(Hook::Ingress, &there);
    datapath.run_uncounted(Hook::Egress, &led);
    let back = Packet::fin(backend, masquerade).bytes();
    let (_, led) = datapath.run_uncounted(Hook::Ingress, &back);
    datapath.run_uncounted(Hook::Egress, &led);
}

/// 60,000 clients at the same time use one backend, each with a port of its own.
#[rstest]
fn nearly_all_ports_are_found(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = datapath(cast, 131_072, PortRange::UNPRIVILEGED);
    let (frontend, backend) = (cast.vip(), cast.endpoint(1));
    let mut seen = BTreeSet::new();
    for host in 1..=6 {
        for port in 0..10_000 {
            let client = cast.outsider_with(host, 1024 + port);
            let request = Packet::udp(client, frontend);
            let masquerade = lead(&datapath, cast, &request);
            let masquerade = masquerade.unwrap_or_else(|| panic!("no port for {client}"));
            assert!(seen.insert(masquerade), "{masquerade} twice");
            let reply = Packet::udp(backend, masquerade).bytes();
            let (_, back) = datapath.run_uncounted(Hook::Ingress, &reply);
            datapath.run_uncounted(Hook::Egress, &back);
        }
    }
    assert_eq!(datapath.reply_tuples(family), 60_000);
}

/// Of flows that nobody answered the one that has waited longest gives way; those
/// that were answered stay, and the client is told that there is no port.
#[rstest]
fn the_longest_unanswered_gives_way(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, 64, TWO_PORTS);
    let (frontend, backend) = (cast.vip(), cast.endpoint(1));
    let open = |datapath: &Datapath, host| {
        let client = cast.outsider_with(host, 5000);
        lead(datapath, cast, &request(tcp)(client, frontend))
    };
    let ports = [1, 2].map(|host| open(&datapath, host).expect("a free port"));
    assert_eq!(open(&datapath, 3), None, "both have just come");
    datapath.age(cast.outsider_with(1, 5000), 5);
    datapath.age(cast.outsider_with(2, 5000), 9);
    assert_eq!(open(&datapath, 3), Some(ports[1]));
    assert_eq!(open(&datapath, 4), Some(ports[0]));

    let clients = [4, 3].map(|host| cast.outsider_with(host, 5000));
    for (client, masquerade) in clients.into_iter().zip(ports) {
        let reply: fn(_, _) -> Packet = if tcp { Packet::syn_ack } else { Packet::udp };
        let (_, back) = datapath.run_uncounted(Hook::Ingress, &reply(backend, masquerade).bytes());
        datapath.run_uncounted(Hook::Egress, &back);
        if tcp {
            lead(&datapath, cast, &Packet::data(client, frontend));
        }
        datapath.age(client, 50);
    }
    let late = request(tcp)(cast.outsider_with(5, 5000), frontend);
    let led = late.clone().to(backend);
    datapath.run(Hook::Ingress, &late).passed_as(&led);
    // The limit of refusals is one of time.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let ran = datapath.run(Hook::Egress, &led);
    ran.counted(&[Counter::MasqueradePortsExhausted]);
    let refusal = refusal(&led, tcp).answering(&led);
    ran.answered_by(&refusal);
    // It takes the way of a backend's packet.
    datapath.run(Hook::Ingress, &refusal).passed_as(&refusal);
    let (verdict, told) = datapath.run_uncounted(Hook::Egress, &refusal.bytes());
    assert_eq!(verdict, Verdict::Next);
    let told_by = if family == Family::V4 {
        &told[26..30]
    } else {
        &told[22..38]
    };
    let expected = match frontend.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    assert_eq!(told_by, expected);
}

/// Returns the refusal that the datapath makes in the backend's name for a packet that must
/// not go on.
fn refusal(led: &Packet, tcp: bool) -> Packet {
    if !tcp {
        return Packet::prohibited(led.dst.ip(), led, 8);
    }
    let mut reset = Packet::rst(led.dst, led.src);
    reset.body = Body::Tcp {
        flags: 4 | 16,
        seq: 0,
        ack: 0x1234_5679,
    };
    reset
}

/// A port that a socket of this host uses towards the backend is left to it, and
/// taken again when it is free (S66). In a network namespace of its own, where
/// the node's address is that of a device.
#[rstest]
fn a_port_that_a_socket_holds_is_avoided(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    on_a_node(family, move |cast| {
        let backend = cast.endpoint(1);
        let mut datapath = usual(cast);
        let request = request(tcp)(cast.outsider(), cast.vip());
        let mut choose = || {
            datapath.forget_flows();
            lead(&datapath, cast, &request).expect("a free port")
        };
        let free = choose();
        let socket = hold(free, backend, tcp);
        let other = choose();
        assert_eq!(other.ip(), free.ip());
        assert_ne!(other.port(), free.port());
        drop(socket);
        assert_eq!(choose(), free);
    });
}

/// A process of the host that connects to the backend itself, from a port that a
/// masqueraded flow has already, gets another one; and each of the two its own
/// answers, and errors.
#[rstest]
fn a_process_that_uses_a_masquerade_port_gets_another(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    on_a_node(family, move |cast| {
        let (backend, client) = (cast.endpoint(1), cast.outsider());
        let datapath = usual(cast);
        let first = request(tcp)(client, cast.vip());
        let masquerade = lead(&datapath, cast, &first).expect("a free port");
        let _socket = hold(masquerade, backend, tcp);
        let (answer, next): (fn(_, _) -> _, fn(_, _) -> _) = if tcp {
            (Packet::syn_ack, Packet::data)
        } else {
            (Packet::udp, Packet::udp)
        };
        let own = request(tcp)(masquerade, backend);
        let ran = datapath.run(Hook::HostEgress, &own);
        let other = source(cast, &ran.packet);
        assert_ne!(other, masquerade);
        ran.passed_as(&own.clone().from(other));
        for _ in 0..2 {
            let reply = answer(backend, other);
            let ran = datapath.run(Hook::Ingress, &reply);
            ran.passed_as(&reply.to(masquerade));
            let more = next(masquerade, backend);
            let ran = datapath.run(Hook::HostEgress, &more);
            ran.passed_as(&more.from(other));
            // The client's own answers are still the client's.
            let reply = answer(backend, masquerade);
            let ran = datapath.run(Hook::Ingress, &reply);
            ran.passed_as(&reply.to(client));
        }
        let error = Packet::too_big(cast.router(), &own.clone().from(other), 8);
        let ran = datapath.run(Hook::Ingress, &error);
        ran.passed_as(&Packet::too_big(cast.router(), &own, 8));
        assert_eq!(datapath.reply_tuples(family), 2);
    });
}

/// A packet that the masqueraded flow itself sends leaves by lower devices as it is,
/// also without a hint.
#[rstest]
fn a_masqueraded_packet_is_not_masqueraded_twice(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
) {
    let cast = Cast::of(family);
    let datapath = usual(cast);
    let first = request(tcp)(cast.outsider(), cast.vip());
    let masquerade = lead(&datapath, cast, &first).expect("a free port");
    let sent = request(tcp)(masquerade, cast.endpoint(1));
    for hook in [Hook::Egress, Hook::HostEgress] {
        datapath.run(hook, &sent).passed_as(&sent);
    }
    assert_eq!(datapath.reply_tuples(family), 1);
}

/// The first packet of a client.
fn request(tcp: bool) -> fn(SocketAddr, SocketAddr) -> Packet {
    if tcp { Packet::syn } else { Packet::udp }
}

/// Runs a test in a network namespace of its own, where the node's address is
/// that of a device and leads to endpoint 1.
fn on_a_node(family: Family, test: impl FnOnce(Cast) + Send + 'static) {
    let run = move || {
        let netns = Netns::create(&name::unique()).expect("a network namespace");
        netns.enter().expect("enter it");
        let cast = Cast::of(family);
        let (node, backend) = (cast.node(), cast.endpoint(1));
        let length = if node.is_ipv4() { 32 } else { 128 };
        let commands = format!(
            "link add near type veth peer name far\nlink set near up\nlink set far up\n\
             addr add {node}/{length} dev near nodad\nroute add {}/{length} dev near\n",
            backend.ip()
        );
        exec::run("ip", &["-batch", "-"], &commands).expect("devices");
        test(cast);
    };
    // The namespace is that of a thread.
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// A socket that has this address and, of TCP, is about to connect to the
/// backend.
fn hold(address: SocketAddr, backend: SocketAddr, tcp: bool) -> Socket {
    let kind = if tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None).expect("a socket");
    socket.bind(&address.into()).expect("a free port");
    if tcp {
        socket.set_nonblocking(true).expect("set");
        let error = socket.connect(&backend.into()).expect_err("nobody there");
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
    }
    socket
}
