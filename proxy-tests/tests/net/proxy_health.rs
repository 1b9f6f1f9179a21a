//! The proxy's own health check, which load balancers and kubelet ask (S105–S110).

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxy_agent::{
    dataplane::{Dataplane, mapped::Access, pins::Pins, tables::KernelTables},
    plan::write,
};
use proxy_common::family::V4;
use proxy_tests::{
    AgentOptions, Family, Host, Lab, Node, Topology,
    agent::{Agent, Source},
    eventually,
};
use rstest::rstest;
use serde_json::{Value, json};

const HEALTH: u16 = 10_256;
const METRICS: u16 = 10_249;
/// From a change to the answer.
const SOON: Duration = Duration::from_secs(10);
/// From the start of an agent to its first answer, on a busy machine.
const STARTED: Duration = Duration::from_mins(1);

/// An answer: status, headers in lower case, body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| self.body.clone())
    }

    fn expect(self, status: u16) -> Result<Value> {
        ensure!(self.status == status, "{}: {}", self.status, self.body);
        self.json()
    }

    /// Whether one of the reasons holds a text.
    fn names(&self, text: &str) -> Result<()> {
        let body = self.json()?;
        let mut reasons = body["reasons"].as_array().into_iter().flatten();
        let found = reasons.any(|reason| reason.as_str().is_some_and(|it| it.contains(text)));
        ensure!(found, "{text:?} is not in {}", self.body);
        Ok(())
    }
}

fn ask(client: &Host, server: SocketAddr, method: &str, path: &str) -> Result<Answer> {
    client.run(|| {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: lb\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok(Answer {
            status,
            head: head.to_lowercase(),
            body: body.to_owned(),
        })
    })
}

/// Asks the node itself, at its address of one family.
fn healthz(node: &Node, family: Family) -> Result<Answer> {
    ask(node, node.at(family, HEALTH), "GET", "/healthz")
}

fn node_object(node: &Node, taint: Option<&str>) -> Value {
    let taints: Vec<_> = taint
        .map(|key| json!({ "key": key, "effect": "NoSchedule" }))
        .into_iter()
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name() },
        "spec": { "taints": taints },
    })
}

/// Both pages answer pods and hosts in both families, whatever the method, as
/// kube-proxy's do (S105).
#[test]
fn both_families_answer_every_method() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    eventually("ready", STARTED, || agent.ask_ready())?;
    for family in Family::BOTH {
        let server = node.at(family, HEALTH);
        for method in ["GET", "POST", "PUT", "DELETE"] {
            for (path, has_node) in [("/healthz", true), ("/livez", false)] {
                let answer = ask(&client, server, method, path)?;
                for line in [
                    "http/1.1 200 ok",
                    "content-type: application/json",
                    "x-content-type-options: nosniff",
                ] {
                    ensure!(
                        answer.head.lines().any(|each| each == line),
                        "{}",
                        answer.head
                    );
                }
                let body = answer.expect(200)?;
                ensure!(
                    body["healthy"] == true && body["reasons"] == json!([]),
                    "{body}"
                );
                ensure!(body["lastUpdated"] == body["currentTime"], "{body}");
                ensure!(body.get("nodeEligible").is_some() == has_node, "{body}");
                for family in Family::BOTH {
                    let family = &body["status"][family.api_name()];
                    ensure!(
                        family["healthy"] == true && family["lastUpdated"].is_string(),
                        "{body}"
                    );
                }
            }
        }
        let head = ask(&client, server, "HEAD", "/healthz")?;
        ensure!(head.status == 200 && head.body.is_empty(), "{}", head.body);
        ensure!(ask(&client, server, "GET", "/")?.status == 404);
    }
    let metrics = agent.metrics()?;
    let counted = r#"kubeproxy_proxy_healthz_total{code="200"} 10"#;
    ensure!(metrics.contains(counted), "{metrics}");
    Ok(())
}

/// A node that the autoscaler removes takes no clients, while the proxy is alive (S108).
#[test]
fn a_node_that_is_to_be_deleted_takes_no_clients() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    for (taint, status) in [
        (Some("other"), 200),
        (Some("ToBeDeletedByClusterAutoscaler"), 503),
        (None, 200),
    ] {
        lab.manifests
            .write_objects(node.name(), &[node_object(node, taint)])?;
        for family in Family::BOTH {
            eventually("the node's state counts", SOON, || {
                let body = healthz(node, family)?.expect(status)?;
                ensure!(body["nodeEligible"] == (status == 200), "{body}");
                Ok(())
            })?;
            ask(node, node.at(family, HEALTH), "GET", "/livez")?.expect(200)?;
        }
    }
    Ok(())
}

/// Without an API server a new node takes no clients, and is alive and not ready. After
/// a first sync, an agent that starts without one goes on with what is there (S109).
#[test]
fn a_new_node_waits_for_services_and_an_old_one_does_not() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let kubeconfig = lab.scratch.path().join("unreachable");
    std::fs::write(&kubeconfig, UNREACHABLE)?;
    let unreachable = AgentOptions {
        source: Source::Kubeconfig(kubeconfig),
        ..AgentOptions::default()
    };
    let agent = Agent::start(node, &lab, &unreachable)?;
    for family in Family::BOTH {
        eventually("the new node", STARTED, || {
            let answer = healthz(node, family)?;
            answer.names("IPv4: the first sync is missing")?;
            answer.names("IPv6: the first sync is missing")?;
            answer.names(&format!("there is no Node named {}", node.name()))?;
            answer.expect(503).map(drop)
        })?;
        ask(node, node.at(family, HEALTH), "GET", "/livez")?.expect(200)?;
    }
    let metrics = SocketAddr::from(([127, 0, 0, 1], METRICS));
    for (path, status) in [("/healthz", 200), ("/readyz", 503)] {
        let answer = ask(node, metrics, "GET", path)?;
        ensure!(answer.status == status, "{path}: {}", answer.body);
    }
    agent.terminate()?;

    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    agent.terminate()?;
    let agent = Agent::start(node, &lab, &unreachable)?;
    eventually("the old node", STARTED, || {
        let answer = healthz(node, Family::V4)?;
        answer.names("what an earlier agent left stays in force")?;
        let body = answer.json()?;
        ensure!(
            body["healthy"] == true && body["nodeEligible"] == false,
            "{body}"
        );
        Ok(())
    })?;
    agent.ask_ready().expect_err("not ready without Services");
    Ok(())
}

const UNREACHABLE: &str = r"
apiVersion: v1
kind: Config
current-context: none
clusters: [{name: none, cluster: {server: 'http://127.0.0.1:1'}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
";

/// Somebody who writes to the tables is a reason until an audit finds nothing to repair.
#[test]
fn another_writer_is_named() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [backend] = node.add_pods(["backend"])?;
    lab.serve([&backend])?;
    let options = AgentOptions::with(&["--audit-period", "2s"]);
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    let mut tables = KernelTables::<V4>::open(&Pins::new(node.pins().path()), Access::Write)?;
    let frontends = tables.read()?.frontends;
    let key = frontends.into_keys().next().context("a frontend")?;
    tables.write(&write::Write::DeleteFrontend { key })?;
    eventually("it is named", SOON, || {
        let answer = healthz(node, Family::V4)?;
        answer.names("IPv4: someone else writes to the tables")?;
        answer.expect(200).map(drop)
    })?;
    eventually("it is over", SOON, || {
        let body = healthz(node, Family::V6)?.expect(200)?;
        ensure!(body["reasons"] == json!([]), "{body}");
        Ok(())
    })
}

/// Services that the tables have no room for are named; the others are served, so load
/// balancers keep the node.
#[test]
fn full_tables_are_named() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [backend] = node.add_pods(["backend"])?;
    lab.serve([&backend])?;
    let options = AgentOptions {
        max_service_ports: 1,
        ..AgentOptions::default()
    };
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    for family in Family::BOTH {
        eventually("it is named", SOON, || {
            let answer = healthz(node, family)?;
            let name = family.api_name();
            answer.names(&format!("{name}: the tables have no room for all of "))?;
            answer.expect(200).map(drop)
        })?;
    }
    Ok(())
}

/// A taken port is told of once, and once it is free; or ends the agent, if that is
/// wished (S110).
#[rstest]
fn a_taken_port_is_tried_again_or_fatal(
    #[values(false, true)] hard_fail: bool,
    #[values("0.0.0.0", "[::]")] host: &str,
) -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let holder = node.run(|| TcpListener::bind((host.trim_matches(['[', ']']), HEALTH)))?;
    let flag = format!("--bind-address-hard-fail={hard_fail}");
    let address = format!("--healthz-bind-address={host}:{HEALTH}");
    let agent = Agent::start(node, &lab, &AgentOptions::with(&[&flag, &address]))?;
    if hard_fail {
        eventually("it ends", STARTED, || {
            ensure!(
                agent.log().contains("listen for health checks at"),
                "not yet"
            );
            Ok(())
        })?;
        ensure!(!agent.wait()?.success(), "it failed");
        return Ok(());
    }
    agent.wait_ready()?;
    let said = |text: &str| agent.log().matches(text).count();
    eventually("it is told", SOON, || {
        ensure!(said("cannot listen for health checks, trying again") == 1);
        Ok(())
    })?;
    drop(holder);
    for family in Family::BOTH {
        eventually("it answers", SOON, || healthz(node, family)?.expect(200))?;
    }
    ensure!(said("cannot listen for health checks") == 1, "once only");
    ensure!(said("health checks are served now") == 1, "once only");
    Ok(())
}

/// Nothing is listened on that is not wished.
#[test]
fn no_address_is_no_server() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let options = AgentOptions::with(&["--healthz-bind-address="]);
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    eventually("ready", STARTED, || agent.ask_ready())?;
    for family in Family::BOTH {
        ensure!(healthz(node, family).is_err(), "somebody listens");
    }
    Ok(())
}

/// What load balancers of clouds send, and how long they wait.
#[derive(Clone, Copy, Debug)]
enum Cloud {
    Aws,
    Google,
    Azure,
    DigitalOcean,
}

impl Cloud {
    fn question(self, server: SocketAddr) -> String {
        match self {
            Self::Aws => format!(
                "GET /healthz HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\
                 User-Agent: ELB-HealthChecker/2.0\r\nAccept-Encoding: gzip, compressed\r\n\r\n"
            ),
            Self::Google => format!(
                "GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: Keep-alive\r\n\
                 User-Agent: GoogleHC/1.0\r\n\r\n",
                server.ip()
            ),
            Self::Azure => format!(
                "GET /healthz HTTP/1.1\r\nHost: {server}\r\nConnection: Keep-Alive\r\n\
                 User-Agent: Load Balancer Agent\r\n\r\n"
            ),
            // Without a host, as proxies ask by default.
            Self::DigitalOcean => "GET /healthz HTTP/1.0\r\n\r\n".to_owned(),
        }
    }

    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Google => 1,
            Self::DigitalOcean | Self::Azure => 5,
            Self::Aws => 10,
        })
    }
}

/// Load balancers of clouds get 200 within their time in both families, also while others
/// connect and say nothing, and 503 once the node is to be deleted.
#[rstest]
fn clouds_are_answered_in_time(
    #[values(Cloud::Aws, Cloud::Google, Cloud::Azure, Cloud::DigitalOcean)] cloud: Cloud,
) -> Result<()> {
    let mut lab = Lab::start(Topology::ONE_NODE)?;
    let balancer = lab.add_external("balancer")?;
    let node = &lab.nodes[0];
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    eventually("ready", STARTED, || agent.ask_ready())?;
    let answer = |family| {
        let server = node.at(family, HEALTH);
        balancer.run(|| {
            let mut stream = TcpStream::connect_timeout(&server, cloud.patience())?;
            stream.set_read_timeout(Some(cloud.patience()))?;
            stream.write_all(cloud.question(server).as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, anyhow::Error>(answer)
        })
    };
    let expect = |family, status: u16| {
        let answer = answer(family)?;
        let line = answer.lines().next().unwrap_or_default();
        ensure!(line.contains(&format!(" {status} ")), "{cloud:?}: {answer}");
        Ok(())
    };
    for family in Family::BOTH {
        let server = node.at(family, HEALTH);
        let connect = || TcpStream::connect_timeout(&server, Duration::from_secs(1));
        let silent = balancer.run(|| (0..100).map(|_| connect()).collect::<Result<Vec<_>, _>>())?;
        for _ in 0..3 {
            expect(family, 200)?;
        }
        drop(silent);
    }
    let leaving = node_object(node, Some("ToBeDeletedByClusterAutoscaler"));
    lab.manifests.write_objects(node.name(), &[leaving])?;
    for family in Family::BOTH {
        eventually("the node leaves", SOON, || expect(family, 503))?;
    }
    Ok(())
}

/// A device that refuses the programs is named. The node takes no clients if it is the only
/// uplink, and takes them if it leads to a pod.
#[rstest]
#[case::the_uplink(true, 503)]
#[case::a_pods_device(false, 200)]
fn a_device_without_programs_is_named(#[case] is_uplink: bool, #[case] status: u16) -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [pod] = node.add_pods(["pod"])?;
    let device = if is_uplink { "eth0" } else { pod.node_device() };
    node.exec("tc", &["qdisc", "add", "dev", device, "clsact"])?;
    // Somebody else's filter in the place of ours.
    let filter = format!(
        "filter add dev {device} ingress pref 1 protocol all handle 0x7a0d bpf bytecode '1,6 0 0 0'"
    );
    node.feed("tc", &["-batch", "-"], &filter)?;
    let agent = Agent::start(node, &lab, &AgentOptions::with(&["--attach", "clsact"]))?;
    agent.wait_ready()?;
    for family in Family::BOTH {
        eventually("it is named", STARTED, || {
            let answer = healthz(node, family)?;
            answer.names(&format!("device {device} is not served: "))?;
            answer.expect(status).map(drop)
        })?;
        ask(node, node.at(family, HEALTH), "GET", "/livez")?.expect(200)?;
    }
    node.exec("tc", &["filter", "del", "dev", device, "ingress"])?;
    for family in Family::BOTH {
        eventually("it is served", STARTED, || {
            let body = healthz(node, family)?.expect(200)?;
            ensure!(body["reasons"] == json!([]), "{body}");
            Ok(())
        })?;
    }
    Ok(())
}
