//! `kubectl apply -k manifests/`: the API server takes every object, and the
//! pods that come of it serve, with the rights and the settings they are given.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    ECHO_PORT, Family, Lab, Node, Topology, eventually,
    kubernetes::{ControlPlane, Kubectl, Namespace, Probe, ServiceRanges, container},
};
use rstest::rstest;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
/// From the object to what a controller makes of it, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Unedited, in a cluster that kubeadm made: kube-proxy's `ConfigMap` tells the API server's
/// address, in either family, and which clients are pods. Without the `ConfigMap` the
/// address is a setting, and the Node objects tell the agents their pods, which counts by
/// packets.
#[rstest]
#[case::unedited(Family::V4, Server::InKubeProxysConfigMap, "all")]
#[case::unedited_by_ipv6(Family::V6, Server::InKubeProxysConfigMap, "all")]
#[case::without_kube_proxy(Family::V6, Server::InSettings, "host")]
fn pods_of_the_manifests_serve(
    #[case] family: Family,
    #[case] told: Server,
    #[case] sockets: &str,
) -> Result<()> {
    let mut lab = Lab::start(Topology::FLANNEL)?;
    let control_plane = ControlPlane::start(&mut lab, ServiceRanges::V4ThenV6)?;
    let kubectl = control_plane.kubectl();
    let server = control_plane.server(family);
    let mut settings = Vec::new();
    match told {
        Server::InKubeProxysConfigMap => kubectl.create(&[kube_proxys_config_map(server)])?,
        Server::InSettings => settings.extend([
            format!("KUBERNETES_SERVICE_HOST={}", server.ip()),
            format!("KUBERNETES_SERVICE_PORT={}", server.port()),
        ]),
    }
    let folder = manifests(&lab, &settings, sockets)?;
    let folder = folder.to_string_lossy();
    kubectl.run(&["apply", "--kustomize", &folder])?;
    // What was accepted is what was meant: there is nothing to change.
    kubectl.run(&["diff", "--kustomize", &folder])?;
    the_service_account_may_watch_and_nothing_else(kubectl)?;

    let namespace = Namespace::create(&lab, kubectl, "manifests")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo(
        "echo",
        "ipFamilyPolicy: RequireDualStack, type: NodePort, externalTrafficPolicy: Local",
    )?;
    let mut agents = Vec::new();
    for node in &lab.nodes {
        let pod = pod_of(kubectl, node)?;
        let agent = container::start_agent(&control_plane, &lab, node, &pod)?;
        agent.wait_ready()?;
        is_ready(node, &pod)?;
        agents.push(agent);
    }
    let service = namespace.service("echo")?;
    for family in Family::BOTH {
        // Clients from outside would reach this node's backend alone.
        let node_port = lab.nodes[0].at(family, service.node_port()?);
        for target in [service.at(family, ECHO_PORT)?, node_port] {
            Probe::new(&client, target).reaches(&[&local, &remote])?;
        }
    }
    for agent in &agents {
        let log = agent.log();
        let complaints: Vec<_> = log
            .lines()
            .filter(|line| {
                line.contains(r#""level":"WARN""#) || line.contains(r#""level":"ERROR""#)
            })
            .collect();
        ensure!(complaints.is_empty(), "{complaints:#?}");
    }
    Ok(())
}

/// Who tells the API server's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    InKubeProxysConfigMap,
    InSettings,
}

/// kube-proxy's `ConfigMap` as kubeadm makes it.
fn kube_proxys_config_map(server: SocketAddr) -> Value {
    let kubeconfig = format!(
        "apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: https://{server}
  name: default
contexts:
- context:
    cluster: default
    namespace: default
    user: default
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
"
    );
    let config = include_str!("../../../proxy-agent/tests/data/config/kubeadm.yaml");
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "kube-proxy", "namespace": NAMESPACE },
        "data": { "config.conf": config, "kubeconfig.conf": kubeconfig },
    })
}

/// The manifests with more settings, if any.
fn manifests(lab: &Lab, settings: &[String], sockets: &str) -> Result<PathBuf> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let to = lab.scratch.path().join("tandem");
    fs::create_dir(&to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // Components are folders, and not for everybody.
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    let path = to.join("settings.env");
    let given = fs::read_to_string(&path)?;
    let given = given.replace("_SOCKETS=all", &format!("_SOCKETS={sockets}"));
    fs::write(&path, given + &settings.join("\n") + "\n")?;
    Ok(to)
}

/// RBAC is on, and gives what the agent watches.
fn the_service_account_may_watch_and_nothing_else(kubectl: &Kubectl) -> Result<()> {
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:tandem");
    let may = |verb: &str, resource: &str| {
        let question = [
            "auth",
            "can-i",
            verb,
            resource,
            &account,
            "--all-namespaces",
        ];
        // "no" is a failure, too.
        kubectl
            .run(&question)
            .is_ok_and(|answer| answer.trim() == "yes")
    };
    for resource in [
        "services",
        "endpointslices.discovery.k8s.io",
        "servicecidrs.networking.k8s.io",
        "nodes",
        "pods",
    ] {
        for verb in ["list", "watch"] {
            ensure!(may(verb, resource), "it may not {verb} {resource}");
        }
        for verb in ["create", "update", "patch", "delete"] {
            ensure!(!may(verb, resource), "it may {verb} {resource}");
        }
    }
    let events = "events.events.k8s.io";
    for (verb, allowed) in [
        ("create", true),
        ("patch", true),
        ("list", false),
        ("delete", false),
    ] {
        ensure!(may(verb, events) == allowed, "{verb} {events}");
    }
    for resource in ["secrets", "configmaps", "endpoints"] {
        ensure!(!may("list", resource), "it may list {resource}");
    }
    Ok(())
}

/// The pod that the `DaemonSet` has for a node, given to it as the scheduler
/// would.
fn pod_of(kubectl: &Kubectl, node: &Node) -> Result<Value> {
    let path = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution\
                /nodeSelectorTerms/0/matchFields/0/values/0";
    let pod = eventually("the node has a pod", LIMIT, || {
        let label = [
            "--namespace",
            NAMESPACE,
            "pods",
            "--selector",
            "k8s-app=tandem",
        ];
        let pods = kubectl.get(&label)?;
        let mut pods = pods["items"].as_array().into_iter().flatten();
        pods.find(|pod| pod.pointer(path).is_some_and(|name| name == node.name()))
            .cloned()
            .context("not yet")
    })?;
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    kubectl.create(&[json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node.name() },
    })])?;
    kubectl.get(&["--namespace", NAMESPACE, "pod", name])
}

/// Waits until the kubelet would call the pod ready.
fn is_ready(node: &Node, pod: &Value) -> Result<()> {
    let probe = &pod["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    let [host, path] = ["host", "path"].map(|field| probe[field].as_str().unwrap_or_default());
    let url = format!("http://{host}:{}{path}", probe["port"]);
    eventually("the pod is ready", LIMIT, || {
        node.exec("curl", &["--silent", "--show-error", "--fail", &url])
    })?;
    Ok(())
}
