//! `proxy-agent explain`, as people and scripts run it.

mod decisions;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use proxy_agent::dataplane::pins::Pins;
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Node, Pod, Service, Topology, Wiring, agent,
    bpffs::PinDirectory,
    name,
    traffic::{Server, ask_tcp},
};
use rstest::rstest;
use serde_json::{Value, json};

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 192.168.1.1}, {type: InternalIP, address: "fd00:192::1"}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::a"]
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.1.9]}, {addresses: [10.244.1.10]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: ["fd00:244:1::9"]}]
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: closed}
spec: {clusterIP: 10.96.0.11, ports: [{port: 80}]}
"#;

/// Runs `explain` about the manifests, and about a bpf root that must not come
/// to be.
fn explain(arguments: &[&str], input: &str) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("shop.yaml"), MANIFESTS)?;
    let manifests = folder.path().to_str().context("a plain path")?;
    let node = [
        "explain",
        "--manifests",
        manifests,
        "--hostname-override=node-a",
        "--cluster-cidr=10.244.0.0/16,fd00:244::/32",
    ];
    run(&[&node, arguments].concat(), input)
}

fn run(arguments: &[&str], input: &str) -> Result<Output> {
    let pins = PinDirectory::reserve(&name::unique())?;
    let mut process = Command::new(agent::binary()?)
        .args(arguments)
        .arg("--bpf-root")
        .arg(pins.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = process.stdin.take().context("a pipe")?;
    // What is refused before it is read breaks the pipe.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = process.wait_with_output()?;
    ensure!(!pins.path().exists(), "pins are left behind");
    Ok(output)
}

fn said(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Scripts know the fields by name, and people by order.
#[test]
fn fields_have_their_names_and_order() -> Result<()> {
    let output = explain(
        &[
            "--from",
            "10.244.1.7",
            "--to",
            "10.96.0.10:80",
            "-o",
            "json",
        ],
        "",
    )?;
    let text = said(&output.stdout);
    let value: Value = serde_json::from_str(&text).with_context(|| said(&output.stderr))?;
    let reason = value["reason"].as_str().context("a reason")?;
    assert!(reason.contains("internalTrafficPolicy"), "{reason}");
    let chosen = value["chosen"].as_str().context("an endpoint")?;
    let expected = format!(
        r#"{{
  "from": "10.244.1.7",
  "to": "10.96.0.10:80",
  "protocol": "tcp",
  "family": "IPv4",
  "via": "pod",
  "verdict": "forward",
  "service": "shop/web:http",
  "frontend": "ClusterIP",
  "endpoints": [
    "10.244.1.10:8080",
    "10.244.1.9:8080"
  ],
  "chosen": "{chosen}",
  "masquerade": false,
  "reason": "{reason}"
}}
"#
    );
    assert_eq!(text, expected);
    Ok(())
}

/// A thousand answers, each in its place and in both families.
#[test]
fn flows_are_answered_in_order() -> Result<()> {
    let questions: Vec<_> = (0..500_u16)
        .flat_map(|number| {
            let port = 10_000 + number;
            [
                json!({"from": format!("10.244.1.7:{port}"), "to": "10.96.0.10:80"}),
                json!({"from": format!("[fd00:198::7]:{port}"), "to": "[fd00:96::a]:80"}),
                json!({"from": format!("192.168.1.1:{port}"), "to": "10.96.0.11:80", "protocol": "tcp"}),
                json!({"from": format!("192.168.1.1:{port}"), "to": "10.96.0.10:80", "protocol": "udp", "via": "external"}),
            ]
        })
        .collect();
    let output = explain(
        &["--flows", "-"],
        &Value::from(questions.clone()).to_string(),
    )?;
    let answers: Vec<Value> =
        serde_json::from_slice(&output.stdout).with_context(|| said(&output.stderr))?;
    let expected = [
        json!(["forward", "pod", "IPv4", false]),
        json!(["forward", "external", "IPv6", true]),
        json!(["reject", "node", "IPv4", false]),
        json!(["reject", "external", "IPv4", false]),
    ];
    assert_eq!(answers.len(), questions.len());
    for (index, (question, answer)) in questions.iter().zip(&answers).enumerate() {
        assert_eq!(
            (&question["from"], &question["to"]),
            (&answer["from"], &answer["to"])
        );
        let shown = ["verdict", "via", "family", "masquerade"].map(|field| answer[field].clone());
        assert_eq!(Value::from(shown.to_vec()), expected[index % 4], "{answer}");
    }
    Ok(())
}

/// Both endpoints are chosen for some client ports, and the same one whenever
/// the same is asked.
#[test]
fn the_clients_port_decides_who_is_chosen() -> Result<()> {
    let questions: Vec<_> = (1..=64)
        .map(|port| json!({"from": format!("10.244.1.7:{port}"), "to": "10.96.0.10:80"}))
        .collect();
    let questions = Value::from(questions).to_string();
    let first = explain(&["--flows", "-"], &questions)?;
    let again = explain(&["--flows", "-"], &questions)?;
    assert_eq!(said(&first.stdout), said(&again.stdout));
    for endpoint in ["10.244.1.9:8080", "10.244.1.10:8080"] {
        let chosen = format!("\"chosen\": \"{endpoint}\"");
        assert!(said(&first.stdout).contains(&chosen), "{endpoint}");
    }
    Ok(())
}

#[rstest]
#[case::client(&["--from", "10.244.1", "--to", "10.96.0.10:80"], "", 2, "10.244.1")]
#[case::port(&["--from", "10.244.1.7", "--to", "10.96.0.10"], "", 2, "10.96.0.10")]
#[case::protocol(
    &["--from", "10.244.1.7", "--to", "10.96.0.10:80", "--protocol", "icmp"], "", 2, "icmp"
)]
#[case::families(&["--from", "fd00::7", "--to", "10.96.0.10:80"], "", 2, "fd00::7")]
#[case::node_address(
    &["--from", "10.244.1.7", "--to", "10.96.0.10:80", "--node-address", "here"], "", 2, "here"
)]
#[case::no_array(&["--flows", "-"], "{}", 2, "array")]
#[case::element(
    &["--flows", "-"],
    r#"[{"from": "10.0.0.1", "to": "10.96.0.10:80"}, {"from": "10.0.0.1", "to": "web"}]"#,
    2,
    "element 1 "
)]
#[case::no_file(&["--flows", "/no/such/file"], "", 1, "/no/such/file")]
fn what_cannot_be_asked_is_one_line(
    #[case] arguments: &[&str],
    #[case] input: &str,
    #[case] code: i32,
    #[case] named: &str,
) -> Result<()> {
    let output = explain(arguments, input)?;
    expect_error(&output, code, named);
    Ok(())
}

#[test]
fn without_tables_it_says_what_to_do() -> Result<()> {
    let flow = ["explain", "--from", "10.244.1.7", "--to", "10.96.0.10:80"];
    expect_error(&run(&flow, "")?, 1, "--manifests");
    let elsewhere = [&flow[..], &["--manifests", "/no/such/folder"]].concat();
    expect_error(&run(&elsewhere, "")?, 1, "/no/such/folder");
    Ok(())
}

#[track_caller]
fn expect_error(output: &Output, code: i32, named: &str) {
    let error = said(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(
        error.starts_with("error: ") && error.contains(named),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(said(&output.stdout), "");
}

/// The verdicts of `explain` from a running agent's tables come true, for every kind of
/// client, also where masquerading depends on routes and devices.
#[rstest]
fn answers_of_a_running_agent_come_true(
    #[values(Wiring::RoutedVeth, Wiring::Bridge)] wiring: Wiring,
) -> Result<()> {
    let lab = Lab::start(Topology {
        wiring,
        ..Topology::ROUTED
    })?;
    let [node, other] = [&lab.nodes[0], &lab.nodes[1]];
    let [client, here] = node.add_pods(["client", "here"])?;
    let there = other.add_pod("there")?;
    let _servers = [
        Server::start(&here, ECHO_TARGET)?,
        Server::start(&there, ECHO_TARGET)?,
    ];
    let services = [(1, &here, 30_081), (2, &there, 30_082)].map(|(number, pod, node_port)| {
        let service = Service::new(pod.name(), number, lab.families())
            .tcp(ECHO_PORT, ECHO_TARGET)
            .endpoint(pod)
            .with("/spec/type", json!("NodePort"))
            .with("/spec/ports/0/nodePort", json!(node_port));
        (service, pod, node_port)
    });
    for (service, ..) in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for (service, backend, node_port) in &services {
            let at_node = node.at(family, *node_port);
            let at_cluster_ip = service.at(family, ECHO_PORT);
            let endpoint = backend.at(family, ECHO_TARGET).to_string();
            for (asker, to) in [
                (&*client, at_cluster_ip),
                (&*client, at_node),
                (&*here, at_cluster_ip),
                (&lab.external, at_cluster_ip),
                (&lab.external, at_node),
            ] {
                let what = format!("{} to {to}, {wiring:?}", asker.name());
                let answer = ask(node, asker.address(family), to)?;
                assert_eq!(answer["verdict"], "forward", "{what}: {answer}");
                assert_eq!(answer["endpoints"], json!([endpoint]), "{what}: {answer}");
                let seen = asker.run(|| ask_tcp(to)).with_context(|| what.clone())?;
                let masqueraded = seen.client.ip() != asker.address(family);
                assert_eq!(answer["masquerade"], masqueraded, "{what}: {answer}");
            }
            let answer = ask(node, node.address(family), at_cluster_ip)?;
            assert_eq!(answer["via"], "node", "{answer}");
            assert_eq!(answer["chosen"], json!(endpoint), "{answer}");
        }
    }
    Ok(())
}

/// A client that session affinity remembers has one endpoint, another one all.
#[test]
fn remembered_clients_have_one_endpoint() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, stranger, one, other] = node.add_pods(["client", "stranger", "one", "other"])?;
    let _servers = [
        Server::start(&one, ECHO_TARGET)?,
        Server::start(&other, ECHO_TARGET)?,
    ];
    let service = Service::echo(lab.families())
        .endpoints([&one, &other])
        .with("/spec/sessionAffinity", json!("ClientIP"));
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let to = service.at(family, ECHO_PORT);
        let mut all = [&one, &other].map(|pod| pod.at(family, ECHO_TARGET).to_string());
        all.sort();
        let endpoints = |pod: &Pod| -> Result<Value> {
            Ok(ask(node, pod.address(family), to)?["endpoints"].clone())
        };
        assert_eq!(endpoints(&client)?, json!(all));
        let reached = client.run(|| ask_tcp(to))?.local;
        assert_eq!(endpoints(&client)?, json!([reached.to_string()]));
        assert_eq!(endpoints(&stranger)?, json!(all));
    }
    Ok(())
}

/// SCTP of the node's own processes to its own addresses meets no hook; it says so.
#[test]
fn what_meets_no_hook_is_not_promised() -> Result<()> {
    const NODE_PORT: u16 = 30_080;
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let backend = node.add_pod("backend")?;
    let service = Service::new("sctp", 1, lab.families())
        .sctp(ECHO_PORT, ECHO_TARGET)
        .node_port(ECHO_PORT, NODE_PORT)
        .endpoint(&backend);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let to = node.at(family, NODE_PORT).to_string();
        for (via, verdict) in [("node", "pass"), ("external", "forward")] {
            let from = lab.external.address(family).to_string();
            let from = ["--from", &from, "--via", via];
            let flow = ["--to", &to, "--protocol", "sctp", "-o", "json"];
            let answer = agent::command(node, &[&["explain"], &from[..], &flow].concat())?;
            let answer: Value = serde_json::from_str(&answer)?;
            assert_eq!(answer["verdict"], verdict, "{answer}");
            let reason = answer["reason"].as_str().context("a sentence")?;
            assert_eq!(
                via == "node",
                reason.contains("loopback device"),
                "{reason}"
            );
        }
    }
    Ok(())
}

/// Without programs on a cgroup, calls of the node's own processes to its own
/// addresses are not served; what goes by packets is.
#[test]
fn without_cgroup_programs_no_call_is_promised() -> Result<()> {
    const NODE_PORT: u16 = 30_080;
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let backend = node.add_pod("backend")?;
    let service = Service::new("web", 1, lab.families())
        .tcp(ECHO_PORT, ECHO_TARGET)
        .node_port(ECHO_PORT, NODE_PORT)
        .endpoint(&backend);
    lab.manifests.write(&service)?;
    let agents = lab.start_agents(&AgentOptions::default())?;
    let verdicts = |expected: [&str; 3]| -> Result<()> {
        for &family in lab.families().list() {
            let (own, at_node) = (node.address(family), node.at(family, NODE_PORT));
            let asked = [
                (own, at_node),
                (own, service.at(family, ECHO_PORT)),
                (lab.external.address(family), at_node),
            ];
            for ((from, to), expected) in asked.into_iter().zip(expected) {
                let answer = ask(node, from, to)?;
                assert_eq!(answer["verdict"], expected, "{answer}");
                let reason = answer["reason"].as_str().context("a sentence")?;
                assert_eq!(expected == "pass", reason.contains("cgroup2"), "{reason}");
            }
        }
        Ok(())
    };
    verdicts(["forward"; 3])?;
    for agent in agents {
        agent.crash()?;
    }
    let links = Pins::new(node.pins().path()).links();
    for link in std::fs::read_dir(links)?.collect::<Result<Vec<_>, _>>()? {
        if link.file_name().to_string_lossy().starts_with("cgroup-") {
            std::fs::remove_file(link.path())?;
        }
    }
    verdicts(["pass", "forward", "forward"])
}

/// Asks with no more than the capabilities of the container.
fn ask(node: &Node, from: IpAddr, to: SocketAddr) -> Result<Value> {
    ask_with(node, &["--from", &from.to_string()], to)
}

/// [`ask`] with these arguments for the client.
fn ask_with(node: &Node, from: &[&str], to: SocketAddr) -> Result<Value> {
    let to = to.to_string();
    let arguments = [&["explain", "--to", &to, "-o", "json"], from].concat();
    let output = agent::command_in_container(node, &arguments)?;
    serde_json::from_slice(&output.stdout).with_context(|| said(&output.stderr))
}

/// Asking changes nothing and opens no flow. Tables are of one network
/// namespace, and only there can routes be asked for.
#[test]
fn asking_leaves_no_trace() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let backend = node.add_pod("backend")?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let pins = node.pins().pins()?;

    for &family in lab.families().list() {
        let to = service.at(family, ECHO_PORT);
        let answer = ask(node, backend.address(family), to)?;
        assert_eq!(answer["via"], "pod", "{answer}");
        let flows = agent::command(node, &["get", "flows", "-o", "json"])?;
        assert_eq!(flows.trim(), "[]");
        let elsewhere = Command::new(agent::binary()?)
            .args(["explain", "--from", "10.0.0.1", "--to", "10.0.0.2:80"])
            .arg("--bpf-root")
            .arg(node.pins().path())
            .output()?;
        expect_error(&elsewhere, 1, "network namespace");
    }
    assert_eq!(node.pins().pins()?, pins);
    Ok(())
}
