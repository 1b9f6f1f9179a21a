//! What `explain` says is what the datapath decides, and why it does: where that
//! depends on devices and routes, on processes that listen, and on the other flows of
//! a client's port.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, Service, Topology,
    addressing::{cluster_cidr, host_length, lan},
    agent, eventually,
    traffic::{Server, TcpClient, ask_tcp},
};
use serde_json::{Value, json};

use super::{ask, ask_with, said};

const NODE_PORT: u16 = 30_080;
/// From a change of addresses to its effect.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// An endpoint of this node is reached by a pod's device, by one without programs, by the
/// uplink, or not at all: what is said of masquerading names which.
#[test]
fn masquerading_is_explained_by_the_way_to_the_endpoint() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let [node, other] = [&lab.nodes[0], &lab.nodes[1]];
    let (backend, remote) = (node.add_pod("backend")?, other.add_pod("remote")?);
    let services = [
        Service::echo_as("here", 1, lab.families()).endpoint(&backend),
        Service::echo_as("there", 2, lab.families()).endpoint(&remote),
    ];
    for (service, node_port) in services.iter().zip([NODE_PORT, NODE_PORT + 1]) {
        let service = service.clone().node_port(ECHO_PORT, node_port);
        lab.manifests.write(&service)?;
    }
    for agent in lab.start_agents(&AgentOptions::default())? {
        agent.crash()?;
    }
    // A device of which no agent knows.
    node.ip(
        "link add plain type veth peer name plain-peer\nlink set plain up\nlink set plain-peer up",
    )?;
    for &family in lab.families().list() {
        let (address, length) = (backend.address(family), host_length(family));
        let gateway = lan(family, 0, 1);
        let pods = backend.node_device();
        let ways = [
            (
                format!("dev {pods}"),
                false,
                "behind a device with programs",
            ),
            (
                "dev plain".to_owned(),
                true,
                "behind a device without programs",
            ),
            (
                format!("via {gateway} dev eth0"),
                true,
                "not known to lead to pods",
            ),
            ("unreachable".to_owned(), true, "no route"),
        ];
        for (way, masquerade, why) in ways {
            let route = match way.as_str() {
                "unreachable" => format!("route add unreachable {address}/{length}"),
                way => format!("route add {address}/{length} {way}"),
            };
            node.ip(&format!("route del {address}/{length}\n{route}"))?;
            let answer = ask(
                node,
                lab.external.address(family),
                node.at(family, NODE_PORT),
            )?;
            assert_eq!(answer["masquerade"], masquerade, "{way}: {answer}");
            let reason = answer["reason"].as_str().context("a sentence")?;
            assert!(reason.contains("on this node"), "{way}: {reason}");
            assert!(reason.contains(why), "{way}: {reason}");
            assert!(!reason.contains("another node"), "{way}: {reason}");
        }
        let to = node.at(family, NODE_PORT + 1);
        let answer = ask(node, lab.external.address(family), to)?;
        let reason = answer["reason"].as_str().context("a sentence")?;
        assert!(
            reason.contains("the endpoint is on another node"),
            "{reason}"
        );
    }
    Ok(())
}

/// A process of the node that listens at a cluster IP answers in the place of the endpoints.
#[test]
fn what_listens_at_a_cluster_ip_is_found() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    node.ip(
        "link add nodelocaldns type veth peer cache-peer\nlink set nodelocaldns up\nlink set cache-peer up",
    )?;
    let places = Family::BOTH.map(|family| service.at(family, ECHO_PORT));
    for place in places {
        let length = host_length(Family::of(place.ip()));
        node.ip(&format!(
            "addr add {}/{length} dev nodelocaldns nodad",
            place.ip()
        ))?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let expect = |verdict: &str, server: &str| -> Result<()> {
        for &family in lab.families().list() {
            let to = service.at(family, ECHO_PORT);
            eventually("the server", FOLLOWED_WITHIN, || {
                let answer = client.run(|| ask_tcp(to))?;
                ensure!(answer.server == server, "{} answers", answer.server);
                Ok(())
            })?;
            for from in [client.address(family), node.address(family)] {
                let answer = ask(node, from, to)?;
                assert_eq!(answer["verdict"], verdict, "{answer}");
                let reason = answer["reason"].as_str().context("a sentence")?;
                assert_eq!(
                    verdict == "pass",
                    reason.contains("listens at this very address and port"),
                    "{reason}"
                );
            }
        }
        Ok(())
    };
    expect("forward", backend.name())?;
    let cache = Server::start_at(node, &places)?;
    expect("pass", node.name())?;
    drop(cache);
    expect("forward", backend.name())
}

/// Two flows of one client port never share an endpoint, and so what is said of the second
/// one depends on the first.
#[test]
fn what_a_client_port_has_open_counts() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, one, other] = node.add_pods(["client", "one", "other"])?;
    let _servers = Server::start_all(&[&*one, &*other], ECHO_TARGET)?;
    let services = [("first", 1), ("second", 2)].map(|(name, number)| {
        Service::new(name, number, lab.families())
            .tcp(ECHO_PORT, ECHO_TARGET)
            .endpoints([&one, &other])
    });
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        // By chance, half of the ports have one endpoint twice.
        for port in 40_000..40_016 {
            let from = client.at(family, port);
            let [first, second] = services
                .each_ref()
                .map(|service| service.at(family, ECHO_PORT));
            let _open = client.run(|| TcpClient::to(first).from(from).connect())?;
            let answer = ask_with(node, &["--from", &from.to_string()], second)?;
            let reached = client.run(|| TcpClient::to(second).from(from).connect())?;
            let reached = json!(reached.answer.local.to_string());
            assert_eq!(answer["chosen"], reached, "{from}: {answer}");
        }
    }
    Ok(())
}

/// A client port has flows to sixteen frontends at most; what comes next is dropped, and
/// said to be.
#[test]
fn a_client_port_with_too_many_frontends_is_told() -> Result<()> {
    const FRONTENDS: u16 = 16;
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let mut service = Service::new("many", 1, lab.families()).endpoint(&backend);
    for port in 0..=FRONTENDS {
        service = service.tcp(ECHO_PORT + port, ECHO_TARGET);
    }
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let from = client.at(family, 40_000);
        let flow = ["--from", &from.to_string()];
        let last = service.at(family, ECHO_PORT + FRONTENDS);
        let mut open = Vec::new();
        for port in 0..FRONTENDS {
            assert_eq!(ask_with(node, &flow, last)?["verdict"], "forward");
            let to = service.at(family, ECHO_PORT + port);
            open.push(client.run(|| TcpClient::to(to).from(from).connect())?);
        }
        let answer = ask_with(node, &flow, last)?;
        assert_eq!(answer["verdict"], "drop", "{answer}");
        let reason = answer["reason"].as_str().context("a sentence")?;
        assert!(reason.contains("frontends"), "{reason}");
        let late = TcpClient::to(last)
            .from(from)
            .within(Duration::from_millis(500));
        ensure!(client.run(|| late.connect()).is_err(), "it is served");
    }
    Ok(())
}

/// The manifests that an agent serves from tell the same without it, its tables and devices.
#[test]
fn manifests_answer_as_a_running_agent_does() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let [node, other] = [&lab.nodes[0], &lab.nodes[1]];
    let [client, here] = node.add_pods(["client", "here"])?;
    let there = other.add_pod("there")?;
    for (number, (pod, port)) in (1..).zip([(&here, NODE_PORT), (&there, NODE_PORT + 1)]) {
        let service = Service::echo_as(pod.name(), number, lab.families());
        lab.manifests
            .write(&service.endpoint(pod).node_port(ECHO_PORT, port))?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let mut questions = Vec::new();
    for &family in lab.families().list() {
        let loopback = match family {
            Family::V4 => "127.0.0.1",
            Family::V6 => "::1",
        };
        let clients = [
            (client.address(family), "pod"),
            (here.address(family), "pod"),
            (node.address(family), "node"),
            (lab.external.address(family), "external"),
            (other.address(family), "external"),
            (there.address(family), "external"),
        ];
        let mut frontends = Vec::new();
        for (number, node_port) in (1..).zip([NODE_PORT, NODE_PORT + 1, NODE_PORT + 2]) {
            let service = Service::echo_as("", number, lab.families());
            let loopback: IpAddr = loopback.parse()?;
            frontends.extend([
                service.at(family, ECHO_PORT),
                service.at(family, ECHO_PORT + 1),
                node.at(family, node_port),
                (loopback, node_port).into(),
            ]);
        }
        for to in frontends {
            for (from, via) in clients {
                for protocol in ["tcp", "udp", "sctp"] {
                    questions.push(json!({
                        "from": (from.to_string()), "to": to, "via": via, "protocol": protocol
                    }));
                }
            }
        }
    }
    let flows = tempfile::NamedTempFile::new()?;
    std::fs::write(flows.path(), Value::from(questions).to_string())?;
    let flows = flows.path().to_str().context("a plain path")?;
    let live: Vec<Value> =
        serde_json::from_str(&agent::command(node, &["explain", "--flows", flows])?)?;
    let manifests = lab.manifests.path().to_str().context("a plain path")?;
    let name = format!("--hostname-override={}", node.name());
    let cidrs = lab
        .families()
        .list()
        .iter()
        .map(|family| cluster_cidr(*family));
    let cidrs = format!("--cluster-cidr={}", cidrs.collect::<Vec<_>>().join(","));
    let addresses = node.addresses().list();
    let addresses = addresses.iter().map(|ip| format!("--node-address={ip}"));
    let mut arguments = vec!["explain".to_owned(), "--flows".to_owned(), flows.to_owned()];
    arguments.extend(["--manifests".to_owned(), manifests.to_owned(), name, cidrs]);
    arguments.extend(addresses);
    let offline = super::run(
        &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        "",
    )?;
    let offline: Vec<Value> =
        serde_json::from_slice(&offline.stdout).with_context(|| said(&offline.stderr))?;
    assert_eq!(live.len(), offline.len());
    for (live, offline) in live.iter().zip(&offline) {
        assert_eq!(live, offline);
    }
    Ok(())
}
