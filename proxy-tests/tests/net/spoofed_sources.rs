//! Packets with somebody else's source, which nobody has checked where they come
//! in. IPv6 has no reverse-path filter, and bridges have none for either family.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Topology, Wiring, addressing,
    eventually,
    traffic::{Server, UdpClient},
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};
const NODE_PORT: u16 = 30_080;
/// The client's port.
const PORT: u16 = 5302;
const SOON: Duration = Duration::from_secs(2);

/// The NodePort's client, to which the spoofed packets go.
#[derive(Clone, Copy, Debug)]
enum Client {
    /// The packets are bridged.
    Pod,
    /// The packets are routed.
    Outside,
}

/// Packets from the node's NodePort that the node did not send are no use of that
/// port by the node: what comes from where they went is a client's.
#[rstest]
fn packets_from_a_node_port_do_not_take_it_from_clients(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
    #[values(Client::Pod, Client::Outside)] client: Client,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let [attacker, server, pod] = node.add_pods(["attacker", "server", "pod"])?;
    let client: &Host = match client {
        Client::Pod => &pod,
        Client::Outside => &lab.external,
    };
    let _server = Server::start(&server, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&server);
    lab.manifests
        .write(&service.node_port(ECHO_PORT, NODE_PORT))?;
    let bridged = topology.wiring == Wiring::Bridge && client.name() == pod.name();
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let frontend = node.at(family, NODE_PORT);
        attacker.ip(&format!(
            "addr add {}/{} dev lo nodad",
            frontend.ip(),
            addressing::host_length(family)
        ))?;
        let spoofed =
            attacker.run(|| UdpClient::connect_from(frontend, client.at(family, PORT)))?;
        if bridged || family == Family::V6 {
            let listener = client.run(|| UdpSocket::bind(client.at(family, PORT)))?;
            listener.set_read_timeout(Some(Duration::from_millis(100)))?;
            eventually("the spoofed packets arrive", SOON, || {
                spoofed.send(b"not from the node")?;
                let (_, from) = listener.recv_from(&mut [0; 64])?;
                ensure!(from == frontend, "{from}");
                Ok(())
            })
            .with_context(|| family.to_string())?;
        } else {
            // Dropped by routing, as the node's own source.
            spoofed.send(b"not from the node")?;
        }
        let socket = client.run(|| UdpClient::connect_from(client.at(family, PORT), frontend))?;
        eventually("the client is served", SOON, || {
            let answer = socket.ask(b"from the client")?;
            ensure!(answer.server == server.name(), "{answer:?}");
            Ok(())
        })
        .with_context(|| format!("{family}, {}", client.name()))?;
    }
    Ok(())
}
