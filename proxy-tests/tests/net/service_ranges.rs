//! The programs know where cluster IPs come from (S47).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::{AgentOptions, Lab, Node, Topology, eventually, settings};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(2);

/// As kubectl prints one.
fn service_cidr(name: &str, cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {
            "creationTimestamp": "2026-08-01T10:00:00Z",
            "finalizers": ["networking.k8s.io/service-cidr-finalizer"],
            "name": name,
        },
        "spec": { "cidrs": cidrs },
        "status": { "conditions": [{
            "lastTransitionTime": "2026-08-01T10:00:00Z",
            "message": "Kubernetes Service CIDR is ready",
            "reason": "",
            "status": "True",
            "type": "Ready",
        }] },
    })
}

fn expect(node: &Node, expected: &[&str]) -> Result<()> {
    eventually("the programs know the ranges", SOON, || {
        let ranges = settings::service_ranges(node)?;
        ensure!(ranges == expected, "{ranges:?}");
        Ok(())
    })
    .with_context(|| format!("{expected:?}"))
}

/// Objects come, change and go, and outlive the agent.
#[test]
fn manifests_say_where_cluster_ips_come_from() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let write = |name: &str, cidrs: &[&str]| {
        lab.manifests
            .write_objects(name, &[service_cidr(name, cidrs)])
    };
    write("kubernetes", &["10.96.0.0/16", "fd00:10:96::/112"])?;
    let mut agents = lab.start_agents(&AgentOptions::default())?;
    expect(node, &["10.96.0.0/16", "fd00:10:96::/112"])?;
    write("more", &["10.98.0.0/16", "fd00:10:98::/112"])?;
    let both = [
        "10.96.0.0/16",
        "10.98.0.0/16",
        "fd00:10:96::/112",
        "fd00:10:98::/112",
    ];
    expect(node, &both)?;

    agents.pop().context("the agent")?.terminate()?;
    expect(node, &both)?;
    write("kubernetes", &["10.96.0.0/16"])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    expect(node, &["10.96.0.0/16", "10.98.0.0/16", "fd00:10:98::/112"])?;
    lab.manifests.write_objects("more", &[])?;
    expect(node, &["10.96.0.0/16"])
}

/// Ranges that there is no room for are named once, and the others count.
#[test]
fn too_many_ranges_are_named() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let agents = lab.start_agents(&AgentOptions::default())?;
    for number in 1..=5 {
        let name = format!("range-{number}");
        let v4 = format!("10.{number}.96.0/24");
        let v6 = format!("fd00:{number}::/112");
        let object = service_cidr(&name, &[&v4, &v6]);
        lab.manifests.write_objects(&name, &[object])?;
    }
    let expected = [
        "10.1.96.0/24",
        "10.2.96.0/24",
        "10.3.96.0/24",
        "10.4.96.0/24",
        "fd00:1::/112",
        "fd00:2::/112",
        "fd00:3::/112",
        "fd00:4::/112",
    ];
    expect(node, &expected)?;
    eventually("the log names the others", SOON, || {
        let log = agents[0].log();
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.contains("service ranges"))
            .collect();
        let [line] = lines[..] else {
            anyhow::bail!("one line, not {lines:?}");
        };
        ensure!(
            line.contains("10.5.96.0/24") && line.contains("fd00:5::/112"),
            "{line}"
        );
        Ok(())
    })
}
