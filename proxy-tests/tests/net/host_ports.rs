//! Processes of the node as clients, whose ports and routes the kernel chooses.

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Topology, Wiring, addressing,
    traffic::{OpenFlows, TcpClient, UdpClient},
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// Replies come in by the device that the route to the Service leads to now:
/// the reverse path filter would not let them pass at another one.
#[rstest]
fn open_flows_follow_the_route(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
    #[values(0, 1)] place: usize,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let backend = lab.nodes[place].add_pod("backend")?;
    let service = lab.serve([&backend])?;
    let switch = lab.underlay.switch();
    switch.ip(&format!(
        "link add p-second type veth peer name eth1 netns {}\n\
         link set p-second master lan up",
        node.netns()
    ))?;
    let mut batch = String::from("link set eth1 up\n");
    for &family in lab.families().list() {
        let (address, length) = (
            addressing::lan(family, 0, 77),
            addressing::subnet_length(family),
        );
        writeln!(batch, "addr add {address}/{length} dev eth1 nodad")?;
    }
    node.ip(&batch)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let mut flows = OpenFlows::start(node, service.at(family, ECHO_PORT))?;
        for device in ["eth1", "eth0"] {
            let gateway = addressing::lan(family, 0, 1);
            let services = addressing::service_cidr(family);
            node.ip(&format!(
                "route replace {services} via {gateway} dev {device}"
            ))?;
            flows
                .stay()
                .with_context(|| format!("{family}, {device}"))?;
        }
    }
    Ok(())
}

/// The kernel gives one port to connections that have different other ends. One
/// to a Service and one to its backend do not disturb each other, whichever was
/// first.
#[rstest]
fn service_and_backend_share_a_port(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
    #[values(true, false)] direct_first: bool,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let backend = lab.nodes[1].add_pod("backend")?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let mut order = [
            service.at(family, ECHO_PORT),
            backend.at(family, ECHO_TARGET),
        ];
        if direct_first {
            order.reverse();
        }
        let source = node.at(family, 41_000);
        node.run(|| tcp_side_by_side(source, order))
            .with_context(|| format!("{family} TCP"))?;
        node.run(|| udp_side_by_side(source, order))
            .with_context(|| format!("{family} UDP"))?;
    }
    Ok(())
}

/// Some servers only answer clients that had to be privileged to get their port.
#[test]
fn privileged_ports_stay() -> Result<()> {
    const PRIVILEGED: u16 = 800;
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let backend = lab.nodes[1].add_pod("backend")?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let (source, target) = (node.at(family, PRIVILEGED), service.at(family, ECHO_PORT));
        let connection = node.run(|| TcpClient::to(target).from(source).connect())?;
        assert_eq!(connection.answer.client, source);
        let answer = node.run(|| UdpClient::connect_from(source, target)?.ask(b"question"));
        assert_eq!(answer?.client, source);
    }
    Ok(())
}

fn tcp_side_by_side(source: SocketAddr, targets: [SocketAddr; 2]) -> Result<()> {
    let mut open = Vec::new();
    for target in targets {
        let connection = TcpClient::to(target).from(source).connect();
        let mut connection = connection.with_context(|| target.to_string())?;
        connection.start_echo()?;
        open.push(connection);
        for connection in &mut open {
            let context = connection.peer_addr()?;
            connection
                .echo(b"whole")
                .with_context(|| format!("{context}, after {target}"))?;
        }
    }
    // The port must not wait in TIME_WAIT.
    Ok(open
        .into_iter()
        .try_for_each(proxy_tests::traffic::Connection::reset)?)
}

fn udp_side_by_side(source: SocketAddr, targets: [SocketAddr; 2]) -> Result<()> {
    let [one, two] = targets.map(|target| UdpClient::connect_from(source, target));
    let sockets = [one?, two?];
    for _ in 0..2 {
        for (socket, target) in sockets.iter().zip(targets) {
            let answer = socket.ask(b"whole");
            answer.with_context(|| target.to_string())?;
        }
    }
    Ok(())
}
