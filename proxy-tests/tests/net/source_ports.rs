//! One client port, several flows that end at the same backend.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Topology, Wiring,
    manifest::Endpoint,
    traffic::{Server, TcpClient, UdpClient},
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};

/// Two Services with the same only backend, used from one port at the same
/// time: both conversations go on side by side. The client may be a pod, the
/// backend itself, a process of the node, or a host outside.
#[rstest]
#[case::routed_veth(Topology { drop_invalid: true, ..Topology::ROUTED })]
#[case::bridge(Topology { wiring: Wiring::Bridge, drop_invalid: true, ..Topology::ROUTED })]
#[case::flannel(Topology { drop_invalid: true, ..Topology::FLANNEL })]
fn two_services_one_backend(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let [client, local] = node.add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends = [
        Endpoint::from(&local),
        Endpoint::from(&remote),
        Endpoint::from(node),
    ];
    let _servers = [&*local, &*remote, &**node]
        .into_iter()
        .map(|host| Server::start(host, ECHO_TARGET))
        .collect::<Result<Vec<_>>>()?;
    let mut pairs = Vec::new();
    for (number, backend) in (1..).zip(backends) {
        let pair = [10 * number, 10 * number + 1].map(|number| {
            Service::echo_as(&format!("service-{number}"), number, lab.families())
                .endpoint(backend.clone())
        });
        for service in &pair {
            lab.manifests.write(service)?;
        }
        pairs.push((backend.name, pair));
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let clients = [&*client, &*local, &**node, &lab.external];
    for &family in lab.families().list() {
        for (backend, pair) in &pairs {
            let [one, two] = pair.each_ref().map(|service| service.at(family, ECHO_PORT));
            for client in clients {
                let context = || format!("{family}, {} to {backend}", client.name());
                let source = client.at(family, 40_000);
                client
                    .run(|| tcp_side_by_side(source, one, two))
                    .with_context(context)?;
                client
                    .run(|| udp_side_by_side(source, one, two))
                    .with_context(context)?;
            }
        }
    }
    Ok(())
}

fn tcp_side_by_side(source: SocketAddr, one: SocketAddr, two: SocketAddr) -> Result<()> {
    let mut first = TcpClient::to(one)
        .from(source)
        .connect()
        .context("first TCP")?;
    first.start_echo()?;
    first.echo(b"alone")?;
    let mut second = TcpClient::to(two)
        .from(source)
        .connect()
        .context("second TCP")?;
    second.start_echo()?;
    for _ in 0..10 {
        first.echo(b"the one").context("first TCP goes on")?;
        second.echo(b"the other").context("second TCP goes on")?;
    }
    assert_eq!((first.peer_addr()?, second.peer_addr()?), (one, two));
    // The next pair must not wait for these to leave TIME_WAIT.
    first.reset()?;
    second.reset()?;
    Ok(())
}

fn udp_side_by_side(source: SocketAddr, one: SocketAddr, two: SocketAddr) -> Result<()> {
    let first = UdpClient::connect_from(source, one)?;
    let second = UdpClient::connect_from(source, two)?;
    for _ in 0..10 {
        first.ask(b"the one").context("first UDP")?;
        second.ask(b"the other").context("second UDP")?;
    }
    // In pieces, both ways.
    first
        .ask_patiently(&[1; 2000])
        .context("first UDP, fragments")?;
    second
        .ask_patiently(&[2; 2000])
        .context("second UDP, fragments")?;
    Ok(())
}

/// A client that ended its connection with a reset may use the port again at
/// once, for the same Service and for another one, many times over.
#[rstest]
#[case::routed_veth(Topology { drop_invalid: true, ..Topology::ROUTED })]
#[case::bridge(Topology { wiring: Wiring::Bridge, drop_invalid: true, ..Topology::ROUTED })]
#[case::flannel(Topology { drop_invalid: true, ..Topology::FLANNEL })]
fn a_port_is_used_again_after_a_reset(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let client = lab.nodes[0].add_pod("client")?;
    let backends = [lab.nodes[0].add_pod("a")?, lab.nodes[1].add_pod("b")?];
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let services = [(1, "one"), (2, "two")].map(|(number, name)| {
        Service::new(name, number, lab.families())
            .tcp(ECHO_PORT, ECHO_TARGET)
            .endpoints(&backends)
    });
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for host in [&*client, &*lab.nodes[0], &lab.external] {
            let source = host.at(family, 43_000);
            for round in 0..20 {
                let frontend = services[round / 2 % 2].at(family, ECHO_PORT);
                host.run(|| -> Result<()> {
                    let mut connection = TcpClient::to(frontend).from(source).connect()?;
                    connection.start_echo()?;
                    connection.echo(b"once more")?;
                    Ok(connection.reset()?)
                })
                .with_context(|| format!("{family}, {}, round {round}", host.name()))?;
            }
        }
    }
    Ok(())
}

/// The backend used directly from the port that was used through the
/// Service just before, and the other way round.
#[rstest]
fn service_and_backend_from_one_port(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let direct = backend.at(family, ECHO_TARGET);
        let frontend = service.at(family, ECHO_PORT);
        for (port, order) in [(41_000, [frontend, direct]), (42_000, [direct, frontend])] {
            one_after_the_other(&client, family, port, order)
                .with_context(|| format!("{family}, {order:?}"))?;
        }
    }
    Ok(())
}

fn one_after_the_other(
    client: &Host,
    family: Family,
    port: u16,
    order: [SocketAddr; 2],
) -> Result<()> {
    let source = client.at(family, port);
    client.run(|| {
        for target in order {
            let mut connection = TcpClient::to(target)
                .from(source)
                .connect()
                .context("TCP")?;
            connection.start_echo()?;
            connection.echo(b"whole").context("TCP")?;
        }
        for target in order {
            let socket = UdpClient::connect_from(source, target)?;
            socket
                .ask(b"whole")
                .with_context(|| format!("UDP to {target}"))?;
        }
        Ok(())
    })
}
