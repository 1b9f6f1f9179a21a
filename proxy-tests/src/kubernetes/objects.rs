//! Pod objects: what the kubelet would tell the API server.

use serde_json::{Value, json};

use crate::{host::Addresses, pod::Pod};

/// A port a pod names, so that Services can refer to it.
#[derive(Clone, Debug)]
pub struct ContainerPort {
    pub name: String,
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
}

/// The Pod object of a running pod of the lab, not ready yet.
pub(super) fn pod(pod: &Pod, namespace: &str, app: &str, ports: &[ContainerPort]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|port| {
            json!({ "containerPort": port.port, "name": port.name, "protocol": port.protocol })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "labels": { "app": app }, "name": pod.name(), "namespace": namespace },
        "spec": {
            "containers": [{ "image": "lab", "name": "server", "ports": ports }],
            "nodeName": pod.node_name(),
            "terminationGracePeriodSeconds": 0,
        },
        "status": status(pod.addresses(), false),
    })
}

/// The status of a running pod that has addresses.
pub(super) fn status(addresses: Addresses, ready: bool) -> Value {
    let addresses: Vec<_> = addresses
        .list()
        .iter()
        .map(|address| json!({ "ip": address.to_string() }))
        .collect();
    json!({
        "conditions": [{ "status": if ready { "True" } else { "False" }, "type": "Ready" }],
        "containerStatuses": [{
            "image": "lab",
            "imageID": "lab",
            "name": "server",
            "ready": ready,
            "restartCount": 0,
            "started": true,
            "state": { "running": {} },
        }],
        "phase": "Running",
        "podIP": addresses[0]["ip"],
        "podIPs": addresses,
    })
}
