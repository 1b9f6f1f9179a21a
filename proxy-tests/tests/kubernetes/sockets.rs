//! A pod chooses the packet path by a label.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Family, Lab, Node, Sockets, Topology,
    agent::{self, Agent, Source},
    cgroup::Cgroup,
    eventually,
    kubernetes::{ControlPlane, Namespace, ServiceRanges},
    traffic::{ask_tcp, ask_udp},
};
use serde_json::json;

const LABEL: &str = "tandem-proxy.github.io/sockets";
const LIMIT: Duration = Duration::from_secs(10);

/// A labelled pod goes by packets, whatever the kubelet calls its cgroup, until
/// it has the label no more; the node's other pods do not.
#[test]
fn labelled_pods_go_by_packets() -> Result<()> {
    let mut lab = Lab::start(Topology::default())?;
    let control_plane = ControlPlane::start(&mut lab, ServiceRanges::V4ThenV6)?;
    let kubectl = control_plane.kubectl();
    kubectl.run(&[
        "create",
        "clusterrole",
        "pods",
        "--verb=list,watch",
        "--resource=pods",
    ])?;
    kubectl.run(&[
        "create",
        "clusterrolebinding",
        "pods",
        "--clusterrole=pods",
        "--user=system:kube-proxy",
    ])?;
    let node = &lab.nodes[0];
    let options = AgentOptions {
        source: Source::Kubeconfig(control_plane.agent_kubeconfig(Family::V4)?),
        ..AgentOptions::with_sockets(Sockets::All)
    };
    let agent = Agent::start(node, &lab, &options)?;
    let namespace = Namespace::create(&lab, kubectl, "sockets")?;
    let [_backend] = namespace.backends([(0, "backend")])?;
    namespace.apply_echo("echo", "ipFamilyPolicy: RequireDualStack")?;
    agent.wait_ready()?;
    let service = namespace.service("echo")?;
    let client = namespace.client(0, "client")?;

    let labelled = uid(&namespace, node, "labelled", "off")?;
    let other = uid(&namespace, node, "other", "on")?;
    let kubepods = node.cgroup().create_within("kubepods")?;
    let slice = node.cgroup().create_within("kubepods.slice")?;
    let plain = kubepods.create_within(&format!("pod{labelled}"))?;
    let systemd =
        slice.create_within(&format!("kubepods-pod{}.slice", labelled.replace('-', "_")))?;
    let not_asked = kubepods.create_within(&format!("pod{other}"))?;

    let flows_of = |cgroup: &Cgroup, family| {
        client.run(|| -> Result<u64> {
            cgroup.enter()?;
            let before = agent::flows_opened(node)?;
            ask_tcp(service.at(family, ECHO_PORT)?)?;
            ask_udp(service.at(family, ECHO_PORT)?, 64)?;
            Ok(agent::flows_opened(node)? - before)
        })
    };
    let expect = |cgroup: &Cgroup, expected: u64| {
        Family::BOTH.into_iter().try_for_each(|family| {
            eventually("calls or packets are translated", LIMIT, || {
                let found = flows_of(cgroup, family)?;
                ensure!(found == expected, "{family}: {found} flows");
                Ok(())
            })
        })
    };
    expect(&plain, 2)?;
    expect(&systemd, 2)?;
    expect(&not_asked, 0)?;
    namespace.kubectl(&["label", "pod", "labelled", &format!("{LABEL}-")])?;
    expect(&plain, 0)?;
    expect(&systemd, 0)
}

/// Creates a pod of the node whose label has this value; returns its uid.
fn uid(namespace: &Namespace<'_>, node: &Node, name: &str, value: &str) -> Result<String> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "labels": { LABEL: value }, "name": name },
        "spec": {
            "containers": [{ "image": "lab", "name": "client" }],
            "nodeName": node.name(),
        },
    });
    namespace.apply(&pod.to_string())?;
    let path = "jsonpath={.metadata.uid}";
    namespace.kubectl(&["get", "pod", name, "-o", path])
}
