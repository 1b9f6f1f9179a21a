//! Addresses and ports that several things share: a load balancer's address that
//! is the node's own, a client port that uses every frontend of a Service
//! (S41, S48, S51).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Policy, Service, Topology, Wiring,
    addressing::{host_length, public},
    eventually,
    host::Addresses,
    traffic::{PATIENCE, Server, TcpClient, UdpClient, ask_tcp, ask_udp_patiently, expect_refusal},
    underlay::route_public,
};
use rstest::rstest;

const NODE_PORT: u16 = 30_001;
const BALANCED: u8 = 1;
const EXTERNAL: u8 = 101;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// A Service with every kind of frontend there is.
fn service(lab: &Lab) -> Service {
    let addresses = |number| Addresses::choose(lab.families(), |family| public(family, number));
    Service::echo(lab.families())
        .node_port(ECHO_PORT, NODE_PORT)
        .load_balancer(addresses(BALANCED), "VIP")
        .external_ips(addresses(EXTERNAL))
}

/// One source port for all frontends, one after the other and then all at once:
/// each answers for itself, although they lead to one backend.
#[rstest]
fn one_client_port_uses_every_frontend(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
    #[values(0, 1)] backends_node: usize,
) -> Result<()> {
    const SOURCE: u16 = 40_000;
    let lab = Lab::start(topology)?;
    let client = lab.nodes[0].add_pod("client")?;
    let backend = lab.nodes[backends_node].add_pod("backend")?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    route_public(&lab.external, &lab.nodes[0])?;
    let service = service(&lab).endpoint(&backend);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let node = lab.nodes[0].address(family);
        let frontends = [
            service.at(family, ECHO_PORT),
            SocketAddr::new(public(family, BALANCED), ECHO_PORT),
            SocketAddr::new(public(family, EXTERNAL), ECHO_PORT),
            SocketAddr::new(node, NODE_PORT),
        ];
        for host in [&*client, &lab.external] {
            let source = host.at(family, SOURCE);
            host.run(|| connect_to_all(source, &frontends))
                .with_context(|| format!("{} from {source}", host.name()))?;
        }
    }
    Ok(())
}

fn connect_to_all(source: SocketAddr, frontends: &[SocketAddr]) -> Result<()> {
    let (mut connections, mut sockets) = (Vec::new(), Vec::new());
    for &target in frontends {
        let context = || target.to_string();
        let tcp = TcpClient::to(target).from(source);
        let mut connection = tcp.connect().context("TCP").with_context(context)?;
        connection.start_echo()?;
        connections.push(connection);
        let socket = UdpClient::connect_from(source, target)?;
        socket.ask(b"first").context("UDP").with_context(context)?;
        sockets.push(socket);
    }
    for round in 0..10_u8 {
        for (index, connection) in connections.iter_mut().enumerate() {
            connection
                .echo(&[round; 100])
                .with_context(|| format!("TCP {}", frontends[index]))?;
        }
        for (index, socket) in sockets.iter().enumerate() {
            socket
                .ask(&[round; 100])
                .with_context(|| format!("UDP {}", frontends[index]))?;
        }
    }
    Ok(())
}

/// A load balancer's address that the node has given to itself: the Service has
/// its ports there, the node's processes have theirs, and NodePorts are taken
/// there as at any of the node's addresses.
#[rstest]
fn a_nodes_own_address_is_a_load_balancers_too(
    #[values(Topology::ROUTED, BRIDGE)] topology: Topology,
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
) -> Result<()> {
    const OWN: u16 = 9000;
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    route_public(&lab.external, node)?;
    let mut places = Vec::new();
    for &family in lab.families().list() {
        let address = public(family, BALANCED);
        let length = host_length(family);
        node.ip(&format!("addr add {address}/{length} dev lo nodad"))?;
        // The Service's port, too: it comes first.
        for port in [OWN, ECHO_PORT] {
            places.push(SocketAddr::new(address, port));
        }
    }
    let _servers = [
        Server::start(&backend, ECHO_TARGET)?,
        Server::start_at(node, &places)?,
    ];
    let service = service(&lab).external_policy(policy).endpoint(&backend);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let address = public(family, BALANCED);
        for host in [&*client, &lab.external] {
            for (port, server) in [
                (ECHO_PORT, "backend"),
                (NODE_PORT, "backend"),
                (OWN, "node-1"),
            ] {
                expect(host, address, port, server)?;
            }
            // The node itself refuses what nobody has, but limits its errors to
            // a client that it has just sent a redirect.
            let nobodys = SocketAddr::new(address, 81);
            eventually("refusal", 3 * PATIENCE, || {
                host.run(|| expect_refusal(nobodys))
            })
            .with_context(|| host.name().to_owned())?;
        }
    }
    Ok(())
}

fn expect(client: &Host, address: IpAddr, port: u16, server: &str) -> Result<()> {
    let target = SocketAddr::new(address, port);
    let answers = client.run(|| -> Result<_> {
        let over_udp = ask_udp_patiently(target, 2000).context("UDP")?;
        Ok([ask_tcp(target).context("TCP")?, over_udp])
    });
    for answer in answers.with_context(|| format!("{} to {target}", client.name()))? {
        ensure!(answer.server == server, "{target}: {answer:?}");
        ensure!(answer.client.ip() == client.address(Family::of(address)));
    }
    Ok(())
}
