//! `--remove-taint`: pods are kept away from a node until Services work there.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, Family, Lab, Topology,
    agent::{Agent, Source},
    eventually,
    kubernetes::{ControlPlane, Kubectl, ServiceRanges},
};
use serde_json::json;

const TAINT: &str = "tandem-proxy.github.io/not-ready";
const LIMIT: Duration = Duration::from_mins(1);

fn taints(kubectl: &Kubectl, node: &str) -> Result<Vec<String>> {
    let node = kubectl.get(&["node", node])?;
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let keys = taints.filter_map(|taint| taint["key"].as_str().map(str::to_owned));
    // The node controller may have some of its own.
    Ok(keys.filter(|key| !key.starts_with("node.")).collect())
}

/// Without the right to, the agent says so and goes on; with it, that taint goes and others
/// stay.
#[test]
fn the_taint_goes_when_services_work() -> Result<()> {
    let mut lab = Lab::start(Topology::ONE_NODE)?;
    let control_plane = ControlPlane::start(&mut lab, ServiceRanges::V4ThenV6)?;
    let kubectl = control_plane.kubectl();
    let node = &lab.nodes[0];
    for taint in [TAINT, "other"] {
        let taint = format!("{taint}=:NoSchedule");
        kubectl.run(&["taint", "node", node.name(), &taint])?;
    }
    let options = AgentOptions {
        source: Source::Kubeconfig(control_plane.agent_kubeconfig(Family::V6)?),
        arguments: vec![format!("--remove-taint={TAINT}")],
        ..AgentOptions::default()
    };
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    eventually("it is told", LIMIT, || {
        let log = agent.log();
        ensure!(log.contains("the taint stays, this agent may not"), "{log}");
        Ok(())
    })?;
    ensure!(
        taints(kubectl, node.name())?.len() == 2,
        "nothing is removed"
    );
    agent.terminate()?;

    kubectl.create(&[
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "remove-taint" },
            "rules": [{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"] }],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "remove-taint" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "remove-taint" },
            "subjects": [{ "kind": "User", "name": "system:kube-proxy" }],
        }),
    ])?;
    let _agent = Agent::start(node, &lab, &options)?;
    eventually("the taint is gone", LIMIT, || {
        let left = taints(kubectl, node.name())?;
        ensure!(left == ["other"], "{left:?}");
        Ok(())
    })
}
