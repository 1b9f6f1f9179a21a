//! An object that is wrong harms only itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Service, Topology, eventually,
    traffic::{Server, ask_tcp, ask_udp},
};
use rstest::rstest;
use serde_json::json;

const SOON: Duration = Duration::from_secs(2);

/// Returns bad files: name, text, and the word that the log must name.
fn bad_files() -> [(&'static str, String, &'static str); 8] {
    [
        (
            "broken.yaml",
            "apiVersion: v1\nkind: [Service\n".into(),
            "broken.yaml",
        ),
        ("broken.json", "{".into(), "broken.json"),
        ("binary.yaml", "\0\u{1}\u{2}".into(), "binary.yaml"),
        ("nothing.yaml", "just: text\n".into(), "nothing.yaml"),
        (
            "address.yaml",
            service("no-address", "10.96.0.999", 80),
            "default/no-address",
        ),
        (
            "port.yaml",
            service("no-port", "10.96.0.77", 99_999),
            "default/no-port",
        ),
        (
            "twin.yaml",
            service("twin", "10.96.0.1", 80),
            "default/twin",
        ),
        (
            "multicast.yaml",
            service("multicast", "224.0.0.1", 80),
            "default/multicast",
        ),
    ]
}

/// Each is named in the log; Services from before and after them work.
#[rstest]
fn other_objects_work(#[values(true, false)] before_start: bool) -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let write_all = || {
        bad_files()
            .iter()
            .try_for_each(|(file, text, _)| lab.manifests.write_text(file, text))
    };
    if before_start {
        write_all()?;
    }
    let agents = lab.start_agents(&AgentOptions::default())?;
    if !before_start {
        write_all()?;
    }
    for (_, _, named) in bad_files() {
        eventually("the log names it", SOON, || {
            ensure!(
                agents[0].log().contains(named),
                "{named} is not in {}",
                agents[0].log()
            );
            Ok(())
        })?;
    }
    let later = Service::new("later", 9, lab.families())
        .tcp(ECHO_PORT, ECHO_TARGET)
        .endpoint(&backend);
    lab.manifests.write(&later)?;
    for &family in lab.families().list() {
        client.run(|| ask_tcp(service.at(family, ECHO_PORT)))?;
        client.run(|| ask_udp(service.at(family, ECHO_PORT), 64))?;
        let frontend = later.at(family, ECHO_PORT);
        eventually("a Service written later", SOON, || {
            Ok(client.run(|| ask_tcp(frontend))?)
        })?;
    }
    Ok(())
}

/// A slice with endpoints that make no sense beside one that does.
#[test]
fn bad_endpoints_are_skipped() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    let mut objects = service.objects();
    for slice in &mut objects[1..] {
        let endpoints = slice["endpoints"].as_array_mut().into_iter();
        for endpoints in endpoints {
            for address in ["nonsense", "127.0.0.1", "224.0.0.1", "::", "fe80::1"] {
                endpoints.push(json!({ "addresses": [address], "conditions": { "ready": true } }));
            }
        }
    }
    lab.manifests.write_objects("echo", &objects)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        for _ in 0..20 {
            client.run(|| ask_tcp(service.at(family, ECHO_PORT)))?;
        }
    }
    Ok(())
}

fn service(name: &str, cluster_ip: &str, port: u32) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: default
spec:
  clusterIP: {cluster_ip}
  clusterIPs:
  - {cluster_ip}
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: web
    port: {port}
    protocol: TCP
    targetPort: 8080
  type: ClusterIP
"
    )
}
