//! The flags of devices in `DEVICES`: which lead away, and whose packets
//! pass the programs (E19).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, Family, Lab, Node, Topology, Wiring, addressing::lan, agent, eventually,
};
use serde::Deserialize;

/// From a change of routes to its effect; routes are read once a second.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// A row of `proxy-agent get devices`.
#[derive(Debug, Deserialize)]
struct Row {
    name: Option<String>,
    kind: String,
    uplink: bool,
    hooked: bool,
    pod_routes: bool,
}

/// Kind and flags of every device, by name.
fn devices(node: &Node) -> Result<BTreeMap<String, String>> {
    let json = agent::command(node, &["get", "devices", "-o", "json"])?;
    let rows: Vec<Row> = serde_json::from_str(&json).context(json)?;
    let text = |row: Row| {
        let uplink = if row.uplink { " uplink" } else { "" };
        let hooked = if row.hooked { " hooked" } else { "" };
        let pods = if row.pod_routes { " pods" } else { "" };
        (
            row.name.unwrap_or_default(),
            format!("{}{uplink}{hooked}{pods}", row.kind),
        )
    };
    Ok(rows.into_iter().map(text).collect())
}

fn expect(node: &Node, device: &str, expected: Option<&str>) -> Result<()> {
    eventually("the device is described so", FOLLOWED_WITHIN, || {
        let devices = devices(node)?;
        let actual = devices.get(device).map(String::as_str);
        ensure!(actual == expected, "{device}: {actual:?} in {devices:?}");
        Ok(())
    })
    .with_context(|| format!("{device} as {expected:?}"))
}

/// Routes lead to pods by their devices, the network's and the tunnels lead
/// away, and a bridge is as its ports are.
#[test]
fn uplinks_are_told_from_pods() -> Result<()> {
    let lab = Lab::start(Topology::FLANNEL)?;
    let node = &lab.nodes[0];
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let pod = node.add_pod("pod")?;
    expect(node, pod.node_device(), Some("L2 hooked pods"))?;
    expect(node, "cni0", Some("bridge hooked pods"))?;
    expect(node, "eth0", Some("L2 uplink hooked"))?;
    expect(node, "flannel.1", Some("L2 uplink hooked"))?;
    // A port more does not change what the bridge is.
    node.ip("link add spare type veth peer name spare-peer\nlink set spare master cni0 up")?;
    expect(node, "spare", Some("L2 hooked pods"))?;
    expect(node, "cni0", Some("bridge hooked pods"))?;
    // Without ports the bridge has programs of its own.
    node.ip(&format!(
        "link del spare\nlink set {} nomaster",
        pod.node_device()
    ))?;
    expect(node, "cni0", Some("L2 hooked pods"))?;
    node.ip("link del cni0")?;
    expect(node, "cni0", None)
}

/// A device leads away as long as a route of either family says so.
#[test]
fn routes_are_followed() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let pod = node.add_pod("pod")?;
    expect(node, pod.node_device(), Some("L2 hooked pods"))?;
    expect(node, "eth0", Some("L2 uplink hooked"))?;
    node.ip("route del 0.0.0.0/0\nroute del ::/0")?;
    expect(node, "eth0", Some("L2 hooked"))?;
    let prefixes = [
        (Family::V4, "203.0.113.0/24", "0.0.0.0/0"),
        (Family::V6, "2001:db8::/32", "::/0"),
    ];
    for (family, prefix, all) in prefixes {
        let context = || family.to_string();
        let gateway = lan(family, 0, 1);
        for route in [
            format!("{prefix} via {gateway}"),
            format!("{all} dev eth0"),
            format!("{prefix} nexthop via {gateway} dev eth0"),
        ] {
            node.ip(&format!("route add {route}"))?;
            expect(node, "eth0", Some("L2 uplink hooked")).with_context(context)?;
            node.ip(&format!("route del {route}"))?;
            expect(node, "eth0", Some("L2 hooked")).with_context(context)?;
        }
        // No way to another router.
        node.ip(&format!("route add {prefix} dev eth0"))?;
        node.ip(&format!("route add {all} via {gateway} table 100"))?;
    }
    let quiet = node.add_pod("quiet")?;
    expect(node, quiet.node_device(), Some("L2 hooked pods"))?;
    expect(node, "eth0", Some("L2 hooked"))
}

/// Another agent finds the flags it would set itself, and leaves them alone.
#[test]
fn flags_outlive_the_agent() -> Result<()> {
    let lab = Lab::start(Topology {
        wiring: Wiring::Bridge,
        ..Topology::ONE_NODE
    })?;
    let node = &lab.nodes[0];
    let mut agents = lab.start_agents(&AgentOptions::default())?;
    let _pod = node.add_pod("pod")?;
    expect(node, "cni0", Some("bridge hooked pods"))?;
    let before = devices(node)?;
    agents.pop().context("the agent")?.terminate()?;
    assert_eq!(devices(node)?, before);
    let _agents = lab.start_agents(&AgentOptions::default())?;
    assert_eq!(devices(node)?, before);
    let check = agent::command(node, &["check"])?;
    ensure!(!check.contains("our program is not on"), "{check}");
    Ok(())
}
