//! One client port, several flows that end at the same backend.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use proxy_tests::traffic::{Dial, Server, UdpClient};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Topology, Wiring,
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};

/// Two Services with the same only backend, dialled from one port at the same
/// time: both conversations go on side by side.
#[rstest]
fn two_services_one_backend(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let services = [(1, "one"), (2, "two")].map(|(number, name)| {
        Service::new(name, number, lab.families())
            .tcp(ECHO_PORT, ECHO_TARGET)
            .udp(ECHO_PORT, ECHO_TARGET)
            .endpoint(&backend)
    });
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let source = client.at(family, 40_000);
        let [one, two] = services
            .each_ref()
            .map(|service| service.at(family, ECHO_PORT));
        client
            .run(|| tcp_side_by_side(source, one, two))
            .with_context(|| family.to_string())?;
        client
            .run(|| udp_side_by_side(source, one, two))
            .with_context(|| family.to_string())?;
    }
    Ok(())
}

fn tcp_side_by_side(source: SocketAddr, one: SocketAddr, two: SocketAddr) -> Result<()> {
    let mut first = Dial::to(one).from(source).connect().context("first TCP")?;
    first.start_echo()?;
    first.echo(b"alone")?;
    let mut second = Dial::to(two).from(source).connect().context("second TCP")?;
    second.start_echo()?;
    for _ in 0..10 {
        first.echo(b"the one").context("first TCP goes on")?;
        second.echo(b"the other").context("second TCP goes on")?;
    }
    Ok(())
}

fn udp_side_by_side(source: SocketAddr, one: SocketAddr, two: SocketAddr) -> Result<()> {
    let first = UdpClient::connect_from(source, one)?;
    let second = UdpClient::connect_from(source, two)?;
    for _ in 0..10 {
        first.ask(b"the one").context("first UDP")?;
        second.ask(b"the other").context("second UDP")?;
    }
    Ok(())
}

/// The backend dialled directly from the port that was used through the
/// Service just before, and the other way round.
#[rstest]
fn service_and_backend_from_one_port(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let direct = backend.at(family, ECHO_TARGET);
        let front_end = service.at(family, ECHO_PORT);
        for (port, order) in [(41_000, [front_end, direct]), (42_000, [direct, front_end])] {
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
            let mut connection = Dial::to(target).from(source).connect().context("TCP")?;
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
