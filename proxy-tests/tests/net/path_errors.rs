//! ICMP errors about translated packets reach the sender of the packet, with the addresses
//! that it knows.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Topology, UnderlayKind,
    Wiring, addressing, eventually,
    traffic::{
        PATIENCE, PathError, Redirects, Server, TcpClient, UdpClient, ask_tcp, ask_udp,
        ask_udp_patiently,
    },
};
use rstest::rstest;

const NODE_PORT: u16 = 30_080;

/// A link narrower than everybody thinks: TCP finds its way, in both directions,
/// also when the client is masqueraded; so do datagrams in pieces; UDP that
/// must not be cut learns the path's MTU.
#[rstest]
fn path_mtu_is_discovered(
    #[values(1280, 1400)] mtu: u16,
    #[values(Wiring::RoutedVeth, Wiring::Bridge)] wiring: Wiring,
) -> Result<()> {
    let underlay = UnderlayKind::Routed { mtu };
    let lab = Lab::start(Topology {
        underlay,
        wiring,
        ..Topology::ROUTED
    })?;
    let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let _servers = [
        Server::start(&local, ECHO_TARGET)?,
        Server::start(&remote, ECHO_TARGET)?,
    ];
    let near = echo_like("near", 1, &lab)
        .endpoint(&local)
        .node_port(ECHO_PORT, NODE_PORT);
    let far = echo_like("far", 2, &lab).endpoint(&remote);
    // What a kernel has learnt of the way to one Service it knows of no other.
    let unknown = echo_like("unknown", 3, &lab).endpoint(&remote);
    for service in [&near, &far, &unknown] {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        // Comes first: afterwards the backend knows the way.
        let node_port = lab.nodes[0].at(family, NODE_PORT);
        lab.external
            .run(|| transfer(node_port))
            .with_context(|| format!("{family}: NodePort"))?;
        for (host, service) in [
            (&*client, &far),
            (&*lab.nodes[0], &far),
            (&lab.external, &near),
            (&lab.external, &far),
        ] {
            let context = || format!("{family}: {} to {}", host.name(), service.name());
            host.run(|| transfer(service.at(family, ECHO_PORT)))
                .with_context(context)?;
        }
        for host in [&*client, &*lab.nodes[0], &lab.external] {
            host.run(|| learn_mtu(&unknown, family, mtu))
                .with_context(|| format!("{family}: {}", host.name()))?;
        }
    }
    Ok(())
}

fn echo_like(name: &str, number: u8, lab: &Lab) -> Service {
    Service::echo_as(name, number, lab.families())
}

fn transfer(frontend: SocketAddr) -> Result<()> {
    TcpClient::to(frontend)
        .connect()?
        .upload(3_000_000)
        .context("up")?;
    TcpClient::to(frontend)
        .connect()?
        .download(3_000_000)
        .context("down")?;
    for length in [2000, 8000] {
        ask_udp_patiently(frontend, length)
            .with_context(|| format!("UDP in fragments, {length} bytes"))?;
    }
    Ok(())
}

/// The error reaches the socket connected to the Service, and the kernel then
/// knows the path to the Service.
fn learn_mtu(service: &Service, family: Family, mtu: u16) -> Result<()> {
    let socket = UdpClient::connect(service.at(family, ECHO_PORT))?;
    socket.do_not_fragment()?;
    socket.keep_errors()?;
    socket.send(&[0; 1420])?;
    assert_eq!(
        socket.path_error().context("datagram too large")?.info,
        u32::from(mtu)
    );
    assert_eq!(socket.path_mtu()?, u32::from(mtu));
    let refused = socket
        .send(&[0; 1420])
        .err()
        .and_then(|error| error.raw_os_error());
    assert_eq!(refused, Some(libc::EMSGSIZE));
    Ok(())
}

/// Each hop on the way to a backend tells the client that the packet to the
/// Service has expired there, as traceroute wants to hear.
#[rstest]
#[case::routed_veth(Topology::ROUTED)]
#[case::bridge(Topology { wiring: Wiring::Bridge, ..Topology::ROUTED })]
#[case::flannel(Topology::FLANNEL)]
fn expired_packets_are_reported(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let client = lab.nodes[0].add_pod("client")?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let service = lab.serve([&remote])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for (hops, node) in (1..).zip(&lab.nodes) {
            let offender = client.run(|| expire(&service, family, hops));
            let offender = offender.with_context(|| format!("{family}, {hops} hops"))?;
            let addresses = node.device_addresses(family)?;
            assert!(
                addresses.contains(&offender),
                "{offender} is not of {}",
                node.name()
            );
        }
        client.run(|| ask_udp(service.at(family, ECHO_PORT), 10))?;
    }
    Ok(())
}

/// Sends a packet that lives `hops` hops; returns where it died.
fn expire(service: &Service, family: Family, hops: u32) -> Result<std::net::IpAddr> {
    let time_exceeded = match family {
        Family::V4 => 11,
        Family::V6 => 3,
    };
    let socket = UdpClient::connect(service.at(family, ECHO_PORT))?;
    socket.keep_errors()?;
    socket.set_hop_limit(hops)?;
    socket.send(b"short-lived")?;
    let error = socket.path_error()?;
    assert_eq!(error.kind, time_exceeded, "{error:?}");
    Ok(error.offender)
}

/// The backend's pod lives but nobody listens: the client hears "refused" over
/// TCP and UDP, wherever pod and client are.
#[rstest]
#[case::routed_veth(Topology { drop_invalid: true, ..Topology::ROUTED })]
#[case::bridge(Topology { wiring: Wiring::Bridge, drop_invalid: true, ..Topology::ROUTED })]
#[case::flannel(Topology::FLANNEL)]
fn closed_ports_refuse(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let services = [(1, &local), (2, &remote)]
        .map(|(number, pod)| echo_like(pod.name(), number, &lab).endpoint(pod));
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for host in [&*client, &*lab.nodes[0], &lab.external] {
            for service in &services {
                expect_refusal(host, service, family);
            }
        }
    }
    Ok(())
}

fn expect_refusal(host: &Host, service: &Service, family: Family) {
    let frontend = service.at(family, ECHO_PORT);
    let context = format!("{family}: {} to {}", host.name(), service.name());
    let tcp = host.run(|| ask_tcp(frontend)).map_err(|error| error.kind());
    assert_eq!(tcp, Err(ErrorKind::ConnectionRefused), "TCP, {context}");
    let udp = host
        .run(|| ask_udp(frontend, 16))
        .map_err(|error| error.kind());
    assert_eq!(udp, Err(ErrorKind::ConnectionRefused), "UDP, {context}");
    let error = host.run(|| unreachable(frontend)).expect(&context);
    let port_unreachable = match family {
        Family::V4 => (3, 3),
        Family::V6 => (1, 4),
    };
    assert_eq!((error.kind, error.code), port_unreachable, "{context}");
    // Said by the Service about a packet to the Service.
    assert_eq!(error.offender, frontend.ip(), "{context}");
    assert_eq!(error.destination, frontend, "{context}");
}

/// The error that a datagram brings about.
fn unreachable(frontend: SocketAddr) -> io::Result<PathError> {
    let socket = UdpClient::connect(frontend)?;
    socket.keep_errors()?;
    socket.send(b"anybody?")?;
    socket.path_error()
}

/// A node that sends packets on by the device they came by tells the sender of
/// the shorter way. A client of a Service must not hear it: translated, it
/// would say that another machine has the Service's address (E3). What it
/// reaches directly it may hear about.
#[rstest]
#[case::routed_veth(Topology::ROUTED)]
#[case::bridge(Topology { wiring: Wiring::Bridge, ..Topology::ROUTED })]
#[case::bridge_netfilter(Topology { wiring: Wiring::Bridge, bridge_netfilter: true, ..Topology::ROUTED })]
fn redirects_never_reach_clients(#[case] topology: Topology) -> Result<()> {
    let mut lab = Lab::start(topology)?;
    let other = lab.add_external("other")?;
    let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends = [local, remote];
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let service = echo_like("all", 1, &lab).endpoints(&backends);
    lab.manifests.write(&service)?;
    give_ipv6_a_reason(&lab)?;
    let agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        let before = agents[0].counted("redirect_dropped")?;
        for host in [&*client, &lab.external] {
            let redirects = host.run(|| Redirects::listen(family))?;
            for _ in 0..30 {
                host.run(|| ask_tcp(frontend))?;
                host.run(|| ask_udp(frontend, 64))?;
            }
            let count = redirects.count()?;
            assert_eq!(count, 0, "{family}: {} heard redirects", host.name());
        }
        let dropped = agents[0].counted("redirect_dropped")? - before;
        assert!(dropped > 0, "{family}: there was none to be dropped");

        // Another host, because the kernel tells nobody very often.
        let (remote, node) = (backends[1].at(family, ECHO_TARGET), &lab.nodes[0]);
        let redirects = other.run(|| Redirects::listen(family))?;
        other.ip(&format!(
            "route add {} via {}",
            remote.ip(),
            node.address(family)
        ))?;
        eventually("a redirect about a direct flow", PATIENCE, || {
            other.run(|| ask_udp(remote, 64))?;
            ensure!(redirects.count()? > 0, "none");
            Ok(())
        })
        .with_context(|| family.to_string())?;
    }
    Ok(())
}

/// IPv6 redirects name the better router by its link-local address: the first
/// node must know the second by that.
fn give_ipv6_a_reason(lab: &Lab) -> Result<()> {
    let [first, second] = [&lab.nodes[0], &lab.nodes[1]];
    let pods = addressing::pod_cidr(Family::V6, second.index());
    second.ip("addr add fe80::2/64 dev eth0 nodad")?;
    first.ip(&format!("route replace {pods} via fe80::2 dev eth0"))
}
