//! The socket LB: calls are translated, not packets, and no client can
//! tell the difference.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Pod, PodNetwork, Service,
    Sockets, Topology, Wiring,
    addressing::public,
    agent::{self, Agent},
    capabilities, eventually,
    traffic::{PATIENCE, Server, TcpClient, UdpClient, UdpTalker, Way, mapped},
};
use rstest::rstest;

const TWO_NODES: Topology = Topology {
    nodes: 2,
    wiring: Wiring::RoutedVeth,
    pod_network: PodNetwork::Routes,
    ..Topology::ONE_NODE
};
/// With two backends, one is missed this many times in a row once in 10^9.
const ENOUGH: usize = 30;
const AT_ONCE: Duration = Duration::from_secs(2);

/// Pods and processes of the node, every way to connect or send: all backends answer, see
/// the client, and to it seem to be the Service, whichever path it takes. And
/// it takes the one that is configured.
#[rstest]
fn both_paths_answer_alike(
    #[values(Sockets::Off, Sockets::Host, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(TWO_NODES)?;
    let node = &lab.nodes[0];
    let [client, local] = node.add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends = [local, remote];
    let service = lab.serve(&backends)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(sockets))?;

    let both: BTreeSet<_> = backends.iter().map(|pod| pod.name().to_owned()).collect();
    let clients: [(&Host, bool); 2] = [
        (&client, sockets == Sockets::All),
        (node, sockets != Sockets::Off),
    ];
    for (host, by_socket) in clients {
        let before = agent::flows_opened(node)?;
        for &family in lab.families().list() {
            let frontend = service.at(family, ECHO_PORT);
            for way in Way::ALL {
                if !way.fits(family) {
                    continue;
                }
                let context = || format!("{} {family} {way:?}", host.name());
                let mut servers = BTreeSet::new();
                for _ in 0..ENOUGH {
                    let (answer, own) = host.run(|| way.ask(frontend)).with_context(context)?;
                    assert_eq!(answer.client.ip(), host.address(family), "{}", context());
                    // On the packet path processes of the node get another one.
                    if by_socket || host.name() == client.name() {
                        assert_eq!(answer.client.port(), own.port(), "{}", context());
                    }
                    servers.insert(answer.server);
                }
                assert_eq!(servers, both, "{}", context());
            }
        }
        let recorded = agent::flows_opened(node)? > before;
        assert_eq!(recorded, !by_socket, "{}: flows recorded", host.name());
    }
    Ok(())
}

/// No endpoint, and a port the Service does not have: the call itself says so,
/// and at once.
#[test]
fn refused_by_the_call_itself() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let served = Service::echo(lab.families()).endpoint(&backend);
    let empty = Service::echo_as("empty", 2, lab.families());
    lab.manifests.write(&served)?;
    lab.manifests.write(&empty)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for host in [&*client, &**node] {
        for &family in lab.families().list() {
            for target in [empty.at(family, ECHO_PORT), served.at(family, 81)] {
                for target in [target, mapped(target)] {
                    host.run(|| {
                        let start = Instant::now();
                        let errors = [
                            TcpClient::to(target).connect().err(),
                            UdpClient::connect(target).err(),
                            UdpTalker::new(Family::of(target.ip()))
                                .and_then(|socket| socket.send(target, b"?"))
                                .err(),
                        ];
                        for error in errors {
                            let kind = error.map(|error| error.kind());
                            assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{target}");
                        }
                        assert!(start.elapsed() < AT_ONCE, "{target}");
                    });
                }
            }
        }
    }
    assert_eq!(agent::flows_opened(node)?, 0);
    Ok(())
}

/// One unconnected socket talks to several Services of the same pods: each
/// answer comes from the one that was asked, also when there are more of them
/// than backends to tell them apart by.
#[rstest]
fn one_socket_talks_to_several_services(
    #[values(Sockets::Off, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let client = node.add_pod("client")?;
    let backends = node.add_pods(["a", "b"])?;
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let services: Vec<_> = (1..=6)
        .map(|number| {
            Service::new(&format!("echo-{number}"), number, lab.families())
                .udp(ECHO_PORT, ECHO_TARGET)
                .endpoints(&backends)
        })
        .collect();
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::with_sockets(sockets))?;

    for &family in lab.families().list() {
        for count in [2, 3, services.len()] {
            client.run(|| -> Result<()> {
                let socket = UdpTalker::new(family)?;
                for _ in 0..3 {
                    for service in &services[..count] {
                        let target = service.at(family, ECHO_PORT);
                        let (_, source) = socket
                            .ask(target)
                            .with_context(|| format!("{family}, {count} Services"))?;
                        assert_eq!(source, target, "{family}, {count} Services");
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A socket that goes elsewhere is told the truth: nothing of an earlier
/// Service sticks to it.
#[test]
fn sockets_that_move_on_are_told_the_truth() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for &family in lab.families().list() {
        client.ip(&format!("route add unreachable {}", public(family, 9)))?;
        let (frontend, direct) = (
            service.at(family, ECHO_PORT),
            backend.at(family, ECHO_TARGET),
        );
        client.run(|| -> Result<()> {
            let socket = UdpTalker::new(family)?;
            for target in [frontend, direct, frontend, direct] {
                assert_eq!(socket.ask(target)?.1, target);
            }
            let socket = UdpClient::connect(frontend)?;
            assert_eq!(socket.peer_addr()?, frontend);
            for target in [direct, frontend] {
                socket.connect_again(target)?;
                assert_eq!(socket.peer_addr()?, target);
                socket.ask(b"question")?;
            }
            let nowhere = SocketAddr::new(public(family, 9), ECHO_PORT);
            let error = socket.connect_again(nowhere).err();
            ensure!(error.is_some(), "{family}: there is a way to nowhere");
            assert_eq!(socket.peer_addr()?, frontend, "it stays connected");
            socket.ask(b"question")?;
            let socket = socket.disconnect()?;
            assert_eq!(socket.ask(direct)?.1, direct, "unconnected");
            assert_eq!(socket.ask(frontend)?.1, frontend);
            Ok(())
        })?;
    }
    Ok(())
}

/// A connected UDP socket whose backend goes away is ended, so that the
/// application connects again and gets one that serves; unconnected ones get
/// it at once, and TCP connections are left alone.
#[test]
fn sockets_of_removed_udp_backends_are_ended() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let client = node.add_pod("client")?;
    let backends = node.add_pods(["a", "b"])?;
    let service = lab.serve(&backends)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for host in [&*client, &**node] {
        for family in Family::BOTH {
            let frontend = service.at(family, ECHO_PORT);
            let targets = BTreeSet::from([frontend, mapped(frontend)]);
            for target in targets {
                lab.manifests.write(&service)?;
                wait_for_backends(node, 2)?;
                let context = || format!("{} {target}", host.name());
                host.run(|| leave_backend(&lab, &service, &backends, target))
                    .with_context(context)?;
            }
        }
    }
    Ok(())
}

fn leave_backend(lab: &Lab, service: &Service, backends: &[Pod], target: SocketAddr) -> Result<()> {
    let connected = UdpClient::connect(target)?;
    let unconnected = UdpTalker::new(Family::of(target.ip()))?;
    unconnected.ask(target)?;
    let mut tcp = TcpClient::to(target).connect()?;
    tcp.start_echo()?;

    let old = connected.ask(b"question")?.server;
    let left = backends.iter().filter(|pod| pod.name() != old);
    lab.manifests
        .write(&service.clone().without_endpoints().endpoints(left))?;
    let error = connected.receive().err().map(|error| error.kind());
    assert_eq!(error, Some(ErrorKind::ConnectionAborted));
    assert_ne!(UdpClient::connect(target)?.ask(b"question")?.server, old);
    let (answer, source) = unconnected.ask(target)?;
    assert_ne!(answer.server, old);
    assert_eq!(source, target);
    tcp.echo(b"still there")?;
    Ok(())
}

/// An agent that may not enter pods' network namespaces cannot end their
/// sockets, so their packets are translated: a connected UDP socket whose
/// backend goes away gets another one. TCP, and the node's own processes, are
/// served by the socket LB as usual.
#[test]
fn sockets_that_cannot_be_ended_change_backends() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let client = node.add_pod("client")?;
    let backends = node.add_pods(["a", "b"])?;
    let service = lab.serve(&backends)?;
    let agent = Agent::start_by(node, &lab, || {
        capabilities::drop_sys_admin()?;
        Agent::command(node, &lab, &AgentOptions::with_sockets(Sockets::All))
    })?;
    agent.wait_ready()?;
    let said = agent.log();
    assert!(
        said.contains("connected UDP sockets of pods are left to the packet path"),
        "{said}"
    );

    for family in Family::BOTH {
        let frontend = service.at(family, ECHO_PORT);
        for target in BTreeSet::from([frontend, mapped(frontend)]) {
            lab.manifests.write(&service)?;
            wait_for_backends(node, 2)?;
            client.run(|| -> Result<()> {
                let connected = UdpClient::connect(target)?;
                let old = connected.ask(b"question")?.server;
                let left = backends.iter().filter(|pod| pod.name() != old);
                lab.manifests
                    .write(&service.clone().without_endpoints().endpoints(left))?;
                eventually("another backend answers", PATIENCE, || {
                    let server = connected.ask(b"question")?.server;
                    ensure!(server != old, "{target}: {server}");
                    Ok(())
                })
            })?;
        }
        lab.manifests.write(&service)?;
        wait_for_backends(node, 2)?;
        let before = agent::flows_opened(node)?;
        client.run(|| TcpClient::to(frontend).connect())?;
        node.run(|| UdpClient::connect(frontend)?.ask(b"question"))?;
        assert_eq!(
            agent::flows_opened(node)?,
            before,
            "{family}: translated in packets"
        );
    }
    Ok(())
}

/// Waits until the tables have this many serving backends of each port and
/// family.
fn wait_for_backends(node: &Node, count: usize) -> Result<()> {
    eventually("backends are in the tables", PATIENCE, || {
        let backends = agent::command(node, &["get", "backends", "-o", "json"])?;
        let backends: serde_json::Value = serde_json::from_str(&backends)?;
        let found = backends.as_array().context("an array")?.len();
        ensure!(found == count * 4, "{found}");
        Ok(())
    })
}
