//! Events on the node and on Services (S93).

use std::{net::TcpListener, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    AgentOptions, Family, Lab, Topology,
    agent::{Agent, Source},
    eventually,
    kubernetes::{ControlPlane, Kubectl, Namespace, ServiceRanges},
};
use serde_json::Value;

/// A report of a series waits for a minute.
const LIMIT: Duration = Duration::from_secs(100);

fn event(kubectl: &Kubectl, namespace: &str, reason: &str) -> Result<Value> {
    let events = kubectl.get(&["--namespace", namespace, "events.events.k8s.io"])?;
    let mut events = events["items"].as_array().into_iter().flatten();
    let event = events.find(|event| event["reason"] == reason).cloned();
    event.with_context(|| format!("no event {reason}"))
}

/// An agent that starts is an event of its node, and a health check port that is taken one
/// of the Service, which is a series while it lasts.
#[test]
fn the_node_and_services_have_events() -> Result<()> {
    let mut lab = Lab::start(Topology::ONE_NODE)?;
    let control_plane = ControlPlane::start(&mut lab, ServiceRanges::V4ThenV6)?;
    let kubectl = control_plane.kubectl();
    let namespace = Namespace::create(&lab, kubectl, "events")?;
    namespace.apply_echo(
        "echo",
        "ipFamilyPolicy: RequireDualStack, type: LoadBalancer, externalTrafficPolicy: Local",
    )?;
    let port = namespace.service("echo")?.health_check_port()?;
    let node = &lab.nodes[0];
    let holder = node.run(|| TcpListener::bind(("0.0.0.0", port)))?;
    let options = AgentOptions {
        source: Source::Kubeconfig(control_plane.agent_kubeconfig(Family::V4)?),
        ..AgentOptions::default()
    };
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;

    let started = eventually("the node's event", LIMIT, || {
        event(kubectl, "default", "Starting")
    })?;
    for (field, expected) in [
        ("type", "Normal"),
        ("action", "StartKubeProxy"),
        ("reportingController", "tandem"),
    ] {
        ensure!(started[field] == expected, "{started}");
    }
    ensure!(started["regarding"]["name"] == node.name(), "{started}");

    let failed = eventually("the Service's event", LIMIT, || {
        event(kubectl, namespace.name(), "FailedToStartServiceHealthcheck")
    })?;
    ensure!(
        failed["type"] == "Warning" && failed["action"] == "Listen",
        "{failed}"
    );
    ensure!(failed["regarding"]["name"] == "echo", "{failed}");
    let text = failed["note"].as_str().unwrap_or_default();
    ensure!(text.contains(&format!("on port {port}: ")), "{failed}");
    eventually("it becomes a series", LIMIT, || {
        let event = event(kubectl, namespace.name(), "FailedToStartServiceHealthcheck")?;
        let count = event["series"]["count"].as_u64().unwrap_or_default();
        ensure!(count > 1, "{event}");
        Ok(())
    })?;
    drop(holder);
    Ok(())
}
