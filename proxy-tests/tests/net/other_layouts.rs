//! An agent takes over from one of another layout version. The folder of an
//! agent's tables gets another name for that: its programs stay in place.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use proxy_common::{
    FORMER_FLOW_LAYOUT, LAYOUT_VERSION,
    flow::Flow,
    net::{AddrV4, AddrV6},
};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Host, Lab, Node, Service, Sockets, Topology,
    agent::{self, Agent},
    eventually, kernel,
    traffic::{Heartbeat, HeartbeatReport, Server, TcpClient, UdpClient, ask_tcp},
};
use rstest::rstest;

const BEAT: Duration = Duration::from_millis(5);
const NODE_PORT: u16 = 30_080;
const REPLACED_WITHIN: Duration = Duration::from_secs(20);

/// An older layout, and a newer one from which a node is rolled back.
const OLDER: &str = "v0";
const NEWER: &str = "v99";

/// Ends the agent and makes its datapath one of another layout version.
fn leave_as(agent: Agent, node: &Node, layout: &str) -> Result<()> {
    agent.terminate()?;
    let root = node.pins().path();
    let own = format!("v{LAYOUT_VERSION}");
    fs::rename(root.join(own), root.join(layout))?;
    Ok(())
}

fn programs_of(node: &Node, device: &str, hook: &str) -> Result<usize> {
    let devices = agent::command(node, &["get", "devices", "--output", "json"])?;
    let devices: serde_json::Value = serde_json::from_str(&devices)?;
    let devices = devices.as_array().context("an array")?;
    let device = devices.iter().find(|each| each["name"] == device);
    let device = device.context("no such device")?;
    Ok(device[hook].as_array().map_or(0, Vec::len))
}

fn expect_one_program(node: &Node, device: &str) -> Result<()> {
    eventually("one program on each hook", REPLACED_WITHIN, || {
        for hook in ["ingress", "egress"] {
            let count = programs_of(node, device, hook)?;
            ensure!(count == 1, "{count} at {hook} of {device}");
        }
        Ok(())
    })
}

fn is_refused(client: &Host, lab: &Lab, service: &Service) -> Result<()> {
    for &family in lab.families().list() {
        let tcp = TcpClient::to(service.at(family, ECHO_PORT)).within(Duration::from_millis(200));
        ensure!(client.run(|| tcp.connect()).is_err(), "still connects");
    }
    Ok(())
}

/// Nothing of the other version serves any more, whichever way its programs
/// were attached, and by the socket LB neither: a Service that is deleted is gone, one
/// whose endpoint changed has the new one, and `check` knew before.
#[rstest]
fn programs_of_another_layout_are_replaced(
    #[values(OLDER, NEWER)] layout: &str,
    #[values(("tcx", Sockets::All), ("clsact", Sockets::Off))] how: (&str, Sockets),
) -> Result<()> {
    let (mode, sockets) = how;
    if !kernel::can_attach(mode) {
        return Ok(());
    }
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, former, present] = node.add_pods(["client", "former", "present"])?;
    let _servers = [
        Server::start(&former, ECHO_TARGET)?,
        Server::start(&present, ECHO_TARGET)?,
    ];
    let service = Service::echo(lab.families());
    let deleted = Service::echo_as("deleted", 2, lab.families()).endpoint(&former);
    lab.manifests.write(&service.clone().endpoint(&former))?;
    lab.manifests.write(&deleted)?;
    let options = AgentOptions {
        sockets,
        ..AgentOptions::with(&["--attach", mode])
    };
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    leave_as(agent, node, layout)?;
    let check = agent::command(node, &["check"])?;
    let line = check.lines().find(|line| line.contains("another version"));
    let line = line.with_context(|| check.clone())?;
    assert!(line.contains(&format!("/{layout}")), "{line}");
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        assert_eq!(client.run(|| ask_tcp(frontend))?.server, "former");
    }

    lab.manifests.delete(&deleted)?;
    lab.manifests.write(&service.clone().endpoint(&present))?;
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    eventually("the other version is gone", REPLACED_WITHIN, || {
        let path = node.pins().path().join(layout);
        ensure!(!path.exists(), "{} is there", path.display());
        Ok(())
    })?;
    for device in ["eth0", client.node_device()] {
        expect_one_program(node, device)?;
    }
    for host in [&*client, &**node] {
        eventually("the deleted Service is gone", REPLACED_WITHIN, || {
            is_refused(host, &lab, &deleted)
        })?;
        for &family in lab.families().list() {
            let frontend = service.at(family, ECHO_PORT);
            for _ in 0..10 {
                assert_eq!(host.run(|| ask_tcp(frontend))?.server, "present");
            }
        }
    }
    Ok(())
}

/// Open flows are carried over where the other version has ours: connections
/// to a cluster IP and to a NodePort, of pods and of clients outside, also of
/// endpoints that left, lose nothing.
#[rstest]
fn open_flows_are_carried_over(#[values(OLDER, NEWER)] layout: &str) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let [node, other] = &lab.nodes[..] else {
        anyhow::bail!("two nodes");
    };
    let client = node.add_pod("client")?;
    let backends = [
        node.add_pod("a")?,
        node.add_pod("b")?,
        other.add_pod("c")?,
        other.add_pod("d")?,
    ];
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let service = Service::echo(lab.families())
        .endpoints(&backends)
        .node_port(ECHO_PORT, NODE_PORT);
    lab.manifests.write(&service)?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    let (mut beats, mut connections, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
    for &family in lab.families().list() {
        let cluster_ip = service.at(family, ECHO_PORT);
        let node_port = node.at(family, NODE_PORT);
        for _ in 0..4 {
            beats.push(Heartbeat::tcp(&client, cluster_ip, BEAT)?);
            beats.push(Heartbeat::tcp(&lab.external, node_port, BEAT)?);
            beats.push(Heartbeat::udp(&client, cluster_ip, BEAT)?);
        }
        for _ in 0..8 {
            for (host, frontend) in [(&*client, cluster_ip), (&lab.external, node_port)] {
                let mut connection = host.run(|| TcpClient::to(frontend).connect())?;
                connection.start_echo()?;
                connections.push(connection);
            }
        }
        let socket = client.run(|| UdpClient::connect(cluster_ip))?;
        let server = socket.ask(b"before")?.server;
        sockets.push((socket, server));
    }
    leave_as(agent, node, layout)?;

    // A backend more, and one less: hashing alone would lead flows elsewhere.
    let [a, _, c, d] = &backends;
    let changed = Service::echo(lab.families())
        .endpoints([a, c, d])
        .node_port(ECHO_PORT, NODE_PORT);
    lab.manifests.write(&changed)?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    eventually("the other version is gone", REPLACED_WITHIN, || {
        ensure!(!node.pins().path().join(layout).exists(), "not yet");
        Ok(())
    })?;
    for connection in &mut connections {
        connection.echo(b"still here")?;
    }
    for (socket, server) in &sockets {
        let answer = socket.ask(b"after")?;
        assert!(server == "b" || answer.server == *server, "{answer:?}");
    }
    for beat in beats {
        let report = beat.stop()?;
        let udp_of_b = report.servers.contains("b");
        assert!(is_intact(&report) || udp_of_b, "{report:?}");
    }
    Ok(())
}

fn is_intact(report: &HeartbeatReport) -> bool {
    report.lost.is_empty() && report.failure.is_none() && report.servers.len() == 1
}

/// Rewrites the records of a pinned flow table as they were before.
fn rewrite<K: aya::Pod, A>(maps: &Path, name: &str) -> Result<()>
where
    Flow<A>: aya::Pod,
{
    let data = MapData::from_pin(maps.join(name))?;
    let mut flows: HashMap<_, K, Flow<A>> = Map::from_map_data(data)?.try_into()?;
    let entries: Vec<_> = flows.iter().collect::<std::result::Result<_, _>>()?;
    for (key, mut flow) in entries {
        if flow.flags & Flow::<A>::HOST == 0 {
            flow.uplink = 0;
        }
        flow.flags &= !Flow::<A>::HOST;
        flows.insert(key, flow, 0)?;
    }
    Ok(())
}

/// Makes the flow tables below `layout` what an agent of the flow layout before
/// ours has left.
fn make_former(node: &Node, layout: &str) -> Result<()> {
    let root = node.pins().path().join(layout);
    rewrite::<[u8; 8], AddrV4>(&root.join("maps"), "FLOWS_V4")?;
    rewrite::<[u8; 20], AddrV6>(&root.join("maps"), "FLOWS_V6")?;
    fs::remove_file(root.join("flow-layout"))?;
    symlink(FORMER_FLOW_LAYOUT.to_string(), root.join("flow-layout"))?;
    Ok(())
}

/// So are those of the flow layout before ours, of all kinds of clients, and what
/// follows is the same for them.
#[test]
fn open_flows_of_the_layout_before_are_carried_over() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let [node, other] = &lab.nodes[..] else {
        anyhow::bail!("two nodes");
    };
    let client = node.add_pod("client")?;
    let backends = [node.add_pod("a")?, other.add_pod("b")?];
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let service = Service::echo(lab.families())
        .endpoints(&backends)
        .node_port(ECHO_PORT, NODE_PORT);
    lab.manifests.write(&service)?;
    let options = AgentOptions::with_sockets(Sockets::Off);
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    let mut connections = Vec::new();
    for &family in lab.families().list() {
        let cluster_ip = service.at(family, ECHO_PORT);
        let node_port = node.at(family, NODE_PORT);
        let clients: [(&Host, _); 3] = [
            (&client, cluster_ip),
            (node, cluster_ip),
            (&lab.external, node_port),
        ];
        for (host, frontend) in clients {
            for _ in 0..8 {
                let mut connection = host.run(|| TcpClient::to(frontend).connect())?;
                connection.start_echo()?;
                connections.push(connection);
            }
        }
    }
    leave_as(agent, node, OLDER)?;
    make_former(node, OLDER)?;
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    eventually("the other version is gone", REPLACED_WITHIN, || {
        ensure!(!node.pins().path().join(OLDER).exists(), "not yet");
        Ok(())
    })?;
    for connection in &mut connections {
        connection.echo(b"still here")?;
    }
    Ok(())
}

/// Flows whose layout is not known are left behind, and said to be; new ones
/// are served.
#[test]
fn flows_of_an_unknown_layout_are_not_read() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    for &family in lab.families().list() {
        client.run(|| ask_tcp(service.at(family, ECHO_PORT)))?;
    }
    leave_as(agent, node, OLDER)?;
    fs::remove_file(node.pins().path().join(OLDER).join("flow-layout"))?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    eventually("the other version is gone", REPLACED_WITHIN, || {
        ensure!(!node.pins().path().join(OLDER).exists(), "not yet");
        Ok(())
    })?;
    assert!(agent.log().contains("not carried over"), "{}", agent.log());
    assert_eq!(agent::flows(node)?, 0);
    for &family in lab.families().list() {
        client.run(|| ask_tcp(service.at(family, ECHO_PORT)))?;
    }
    Ok(())
}
