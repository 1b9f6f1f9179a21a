//! Bridges that have the MAC address of one of their ports, as they get it from
//! Linux unless somebody sets it (E2): a host's `br0` has that of `eth0`.

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Policy, Service, Topology,
    Wiring, addressing,
    host::Addresses,
    manifest::Endpoint,
    traffic::{Server, expect_everything},
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    drop_invalid: true,
    ..Topology::ONE_NODE
};
const NODE_PORT: u16 = 30_080;

/// Gives the bridge and one of its ports one MAC address.
fn share_mac(node: &Node, port: &str) -> Result<()> {
    const MAC: &str = "02:c0:00:00:00:99";
    node.ip(&format!(
        "link set {port} address {MAC}\nlink set cni0 address {MAC}"
    ))
}

/// Requests are bridged like their replies, whoever's address the bridge has.
#[rstest]
fn pods_reach_pods_on_the_bridge(
    #[values("client", "server")] owner: &str,
    #[values(false, true)] before_the_agent: bool,
) -> Result<()> {
    let lab = Lab::start(BRIDGE)?;
    let node = &lab.nodes[0];
    let [client, server] = node.add_pods(["client", "server"])?;
    let service = lab.serve([&server])?;
    let owner = if owner == client.name() {
        &client
    } else {
        &server
    };
    if before_the_agent {
        share_mac(node, owner.node_device())?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    if !before_the_agent {
        share_mac(node, owner.node_device())?;
    }
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client
            .run(|| expect_everything(frontend))
            .with_context(|| family.to_string())?;
    }
    Ok(())
}

/// The next hop of the answers of the backend on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// The client: it is a host of its network.
    Client,
    /// The node, which is its gateway.
    Node,
}

/// A bridge with the network card: clients of that network reach the NodePorts
/// of backends there, and packets take one way in both directions.
#[rstest]
fn clients_outside_reach_backends_on_the_uplinks_bridge(
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
    #[values(Answers::Client, Answers::Node)] answers: Answers,
    #[values(true, false)] shared: bool,
) -> Result<()> {
    let lab = Lab::start(BRIDGE)?;
    let node = &lab.nodes[0];
    let server = node.add_pod("server")?;
    bridge_uplink(node)?;
    if shared {
        share_mac(node, "eth0")?;
    }
    let addresses = match answers {
        Answers::Client => join_network(node, &server)?,
        Answers::Node => server.addresses(),
    };
    let places = addresses.list().into_iter();
    let places: Vec<_> = places.map(|ip| SocketAddr::new(ip, ECHO_TARGET)).collect();
    let _server = Server::start_at(&server, &places)?;
    let service = Service::echo(lab.families())
        .endpoint(Endpoint {
            addresses,
            ..Endpoint::from(&server)
        })
        .node_port(ECHO_PORT, NODE_PORT)
        .external_policy(policy);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let frontend = node.at(family, NODE_PORT);
        lab.external
            .run(|| expect_everything(frontend))
            .with_context(|| family.to_string())?;
    }
    Ok(())
}

/// Makes eth0 a port of the bridge, which gets its addresses.
fn bridge_uplink(node: &Node) -> Result<()> {
    let mut batch = String::from("link set eth0 master cni0\naddr flush dev eth0\n");
    for address in node.addresses().list() {
        let family = Family::of(address);
        writeln!(
            batch,
            "addr add {address}/{} dev cni0 nodad\nroute replace default via {} dev cni0",
            addressing::subnet_length(family),
            addressing::lan(family, 0, 1),
        )?;
    }
    node.ip(&batch)
}

/// Makes the pod a host of the node's network. Returns its addresses there.
fn join_network(node: &Node, pod: &Host) -> Result<Addresses> {
    const NUMBER: u8 = 99;
    let addresses = Addresses::choose(node.topology().families, |family| {
        addressing::lan(family, 0, NUMBER)
    });
    let mut batch = String::new();
    for address in addresses.list() {
        let family = Family::of(address);
        writeln!(
            batch,
            "addr add {address}/{} dev eth0 nodad\nroute replace default via {} dev eth0",
            addressing::subnet_length(family),
            addressing::lan(family, 0, 1),
        )?;
    }
    pod.ip(&batch)?;
    Ok(addresses)
}
