//! Sockets with options that change what a call may translate.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, Service, Sockets, Topology,
    addressing::unspecified,
    agent,
    traffic::{PATIENCE, Server, TcpClient, UdpTalker},
};

/// Processes of the node that bind their sockets to its uplink reach a pod of the
/// node all the same: their packets are translated where they leave.
#[test]
fn sockets_bound_to_a_device_go_by_packets() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let backend = node.add_pod("backend")?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for kind in [socket2::Type::STREAM, socket2::Type::DGRAM] {
            let before = agent::flows_opened(node)?;
            node.run(|| ask_as(frontend, kind, |socket| socket.bind_device(Some(b"eth0"))))
                .with_context(|| format!("{family}, {kind:?}"))?;
            assert_eq!(agent::flows_opened(node)?, before + 1, "{family}, {kind:?}");
        }
    }
    Ok(())
}

/// Asks by a socket that was prepared; returns it.
fn ask_as(
    frontend: SocketAddr,
    kind: socket2::Type,
    prepare: impl FnOnce(&socket2::Socket) -> std::io::Result<()>,
) -> Result<socket2::Socket> {
    let domain = socket2::Domain::for_address(frontend);
    let socket = socket2::Socket::new(domain, kind, None)?;
    prepare(&socket)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&frontend.into(), PATIENCE)?;
    if kind == socket2::Type::DGRAM {
        socket.send(b"question")?;
    }
    let mut answer = [0; 64];
    let length = (&socket).read(&mut answer)?;
    ensure!(length > 0, "{frontend}: no answer");
    Ok(socket)
}

/// Processes of the node that bind their sockets to one of its addresses that
/// nobody else knows a way to are masqueraded, as all of its packets are.
#[test]
fn sockets_bound_to_an_address_go_by_packets() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let backend = lab.nodes[1].add_pod("backend")?;
    let service = lab.serve([&backend])?;
    node.ip("addr add 198.51.100.7/32 dev lo\naddr add 2001:db8:51::7/128 dev lo nodad")?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for &family in lab.families().list() {
        let own: IpAddr = match family {
            Family::V4 => "198.51.100.7".parse()?,
            Family::V6 => "2001:db8:51::7".parse()?,
        };
        let own = SocketAddr::new(own, 0);
        for kind in [socket2::Type::STREAM, socket2::Type::DGRAM] {
            let ask = || {
                ask_as(service.at(family, ECHO_PORT), kind, |socket| {
                    socket.bind(&own.into())
                })
            };
            node.run(ask)
                .with_context(|| format!("{family}, {kind:?}"))?;
        }
        // Unconnected, too.
        node.run(|| -> Result<()> {
            let socket = UdpTalker::bound(own)?;
            socket.ask(service.at(family, ECHO_PORT))?;
            Ok(())
        })
        .with_context(|| format!("{family}, unconnected"))?;
    }
    Ok(())
}

/// A `sendto` that opens a connection is served like a `connect`.
#[test]
fn fast_open_is_served() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        let before = agent::flows_opened(node)?;
        client.run(|| -> Result<()> {
            let domain = socket2::Domain::for_address(frontend);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to_with_flags(b"", &frontend.into(), libc::MSG_FASTOPEN)?;
            let mut answer = [0; 64];
            ensure!((&socket).read(&mut answer)? > 0, "no answer");
            assert_eq!(socket.peer_addr()?.as_socket(), Some(frontend));
            Ok(())
        })?;
        assert_eq!(agent::flows_opened(node)?, before, "{family}");
    }
    Ok(())
}

/// TCP sockets that share a port reach two Services with one and the same
/// backend, because on the packet path each connection can have a port of its
/// own.
#[test]
fn connections_of_one_port_reach_one_backend() -> Result<()> {
    const PORT: u16 = 40_000;
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let services = [("one", 1), ("two", 2)]
        .map(|(name, number)| Service::echo_as(name, number, lab.families()).endpoint(&backend));
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for host in [&**node, &client] {
        for &family in lab.families().list() {
            let any = SocketAddr::new(unspecified(family), PORT);
            let bind = |socket: &socket2::Socket| {
                socket.set_reuse_address(true)?;
                socket.bind(&any.into())
            };
            let mut open = Vec::new();
            for service in &services {
                let frontend = service.at(family, ECHO_PORT);
                let ask = || ask_as(frontend, socket2::Type::STREAM, bind);
                let socket = host.run(ask);
                open.push(socket.with_context(|| format!("{} to {frontend}", host.name()))?);
            }
        }
    }
    Ok(())
}

/// The kernel makes an MPTCP connection's first subflow with a call of its own.
#[test]
fn mptcp_sockets_reach_services() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for &family in lab.families().list() {
        let target = service.at(family, ECHO_PORT);
        let answer = client
            .run(|| TcpClient::to(target).multipath().connect())?
            .answer;
        assert_eq!(answer.server, "backend", "{family}");
    }
    assert_eq!(agent::flows_opened(node)?, 0);
    Ok(())
}
