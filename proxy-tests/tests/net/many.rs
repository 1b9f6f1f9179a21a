//! Nodes with more devices or addresses than usual.

use std::{fmt::Write, fs, time::Duration};

use anyhow::{Result, ensure};
use proxy_agent::dataplane::{
    load::{self, LoadOptions, Sizes},
    pins::Pins,
};
use proxy_common::masquerade::PortRange;
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Host, Lab, Node, Service, Topology,
    agent::{self, Agent},
    eventually,
    traffic::{Server, ask_tcp, ask_udp},
};

const SERVED_WITHIN: Duration = Duration::from_secs(30);
const NODE_PORT: u16 = 30_080;

fn is_served(client: &Host, lab: &Lab, service: &Service) -> Result<()> {
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
        client.run(|| ask_udp(frontend, 64))?;
    }
    Ok(())
}

/// Twice as many devices.
fn add_pairs(node: &Node, count: usize) -> Result<()> {
    let mut batch = String::new();
    for index in 0..count {
        writeln!(
            batch,
            "link add many{index} type veth peer name peer{index}"
        )?;
    }
    node.ip(&batch)
}

/// Tables as they were made for so few devices and addresses.
fn make_small_tables(node: &Node, devices: u32, local_addrs: u32) -> Result<()> {
    let options = LoadOptions {
        pins: Pins::new(node.pins().path()),
        sizes: Sizes {
            services: 1024,
            endpoints: 4096,
            flows: 16_384,
            devices,
            local_addrs,
            ..Sizes::DEFAULT
        },
        masquerade_ports: PortRange::UNPRIVILEGED,
        log_level: 0,
    };
    node.run(|| load::load(&options).map(drop))?;
    Ok(())
}

/// A pod that comes to a node with more than a thousand devices is served.
#[test]
fn a_node_with_many_devices_serves_a_new_pod() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let backend = node.add_pod("backend")?;
    let service = lab.serve([&backend])?;
    add_pairs(node, 550)?;
    let agents = lab.start_agents(&AgentOptions::default())?;
    let client = node.add_pod("client")?;
    eventually("the new pod is served", SERVED_WITHIN, || {
        is_served(&client, &lab, &service)
    })?;
    let log = agents[0].log();
    assert!(!log.contains("WARN"), "{log}");
    Ok(())
}

/// Tables that an earlier agent made too small are adopted: what fits is served,
/// and one line says what does not.
#[test]
fn devices_without_room_are_told_of_once() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    add_pairs(node, 10)?;
    make_small_tables(node, 8, 1024)?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    is_served(&client, &lab, &service)?;
    let warnings = || -> Vec<String> {
        let log = agent.log();
        let lines = log.lines().filter(|line| line.contains("DEVICES is full"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(warnings().len(), 1, "{:?}", warnings());
    assert!(warnings()[0].contains("proxy-agent cleanup"));
    assert!(agent.log().contains("DEVICES 8, not 16384"));

    // It is tried again every five seconds, and served once there is room.
    let mut batch = String::new();
    for index in 0..10 {
        writeln!(batch, "link del many{index}")?;
    }
    node.ip(&batch)?;
    let newcomer = node.add_pod("newcomer")?;
    eventually("the new pod is served", SERVED_WITHIN, || {
        is_served(&newcomer, &lab, &service)
    })?;
    assert_eq!(warnings().len(), 1, "{:?}", warnings());
    Ok(())
}

fn add_local_routes(node: &Node, count: u32) -> Result<()> {
    let mut batch = String::new();
    for index in 0..count {
        let (high, low) = (index / 256, index % 256);
        writeln!(batch, "route add local 10.99.{high}.{low}/32 dev lo")?;
        writeln!(batch, "route add local fd00:99::{index:x}/128 dev lo")?;
    }
    node.ip(&batch)
}

fn expect_own_address(lab: &Lab, node: &Node) -> Result<()> {
    let rows = agent::command(node, &["get", "addresses", "-o", "json"])?;
    for &family in lab.families().list() {
        let own = node.address(family).to_string();
        ensure!(rows.contains(&format!("\"{own}/")), "{own} is not there");
        let frontend = node.at(family, NODE_PORT);
        lab.external.run(|| ask_tcp(frontend))?;
    }
    Ok(())
}

/// Thousands of local prefixes, as `AnyIP` or a left-over kube-ipvs0 bring them,
/// do not take the node's own addresses their place, nor do they in tables that
/// have no room for all.
#[test]
fn many_local_prefixes_leave_the_node_its_own() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let backend = node.add_pod("backend")?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families())
        .endpoint(&backend)
        .node_port(ECHO_PORT, NODE_PORT);
    lab.manifests.write(&service)?;
    add_local_routes(node, 5000)?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    expect_own_address(&lab, node)?;
    let log = agent.log();
    assert!(!log.contains("LOCAL_ADDRS"), "{log}");
    agent.terminate()?;

    fs::remove_dir_all(node.pins().path())?;
    make_small_tables(node, 1024, 100)?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    expect_own_address(&lab, node)?;
    // An address that comes when the table is full.
    node.ip("addr add 198.51.100.7/24 dev eth0\naddr add 2001:db8:51::7/64 dev eth0 nodad")?;
    eventually("the new address is there", SERVED_WITHIN, || {
        let rows = agent::command(node, &["get", "addresses", "-o", "json"])?;
        for own in ["\"198.51.100.7/", "\"2001:db8:51::7/"] {
            ensure!(rows.contains(own), "{own}");
        }
        Ok(())
    })?;
    let log = agent.log();
    let told = log
        .lines()
        .filter(|line| line.contains("LOCAL_ADDRS has room"));
    assert!((1..=3).contains(&told.count()), "{log}");
    Ok(())
}
