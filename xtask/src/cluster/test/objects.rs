//! The objects that tests apply.

use serde_json::{Value, json};

use crate::cluster::{addresses, images::AGNHOST, place::node_name, spec::Family};

/// The port of servers, of TCP and UDP.
pub(super) const PORT: u16 = 8080;

/// A server that says its name and its client, as a pod on a node.
pub(super) fn server(name: &str, node: u8) -> Value {
    let mut pod = pod(name, node);
    pod["spec"]["containers"] = json!([netexec()]);
    pod
}

/// A pod that does nothing by itself.
pub(super) fn client(name: &str, node: u8) -> Value {
    let mut pod = pod(name, node);
    pod["spec"]["containers"] = json!([{"name": "agnhost", "image": AGNHOST, "args": ["pause"]}]);
    pod
}

/// Lets a pod ask the cluster's DNS in this family.
pub(super) fn resolving_in(family: Family, namespace: &str, mut pod: Value) -> Value {
    pod["spec"]["dnsPolicy"] = "None".into();
    pod["spec"]["dnsConfig"] = json!({
        "nameservers": [addresses::dns(family)],
        "searches": [format!("{namespace}.svc.cluster.local")],
    });
    pod
}

/// A server on each node.
pub(super) fn servers(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": template(name),
        },
    })
}

/// Servers wherever there is room. They serve on for a while when they are told to
/// end, until all clients know.
pub(super) fn deployment(name: &str, replicas: u8) -> Value {
    let mut template = template(name);
    template["spec"]["containers"][0]["args"]
        .as_array_mut()
        .into_iter()
        .for_each(|arguments| arguments.push("--delay-shutdown=10".into()));
    template["spec"]["terminationGracePeriodSeconds"] = 15.into();
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template,
        },
    })
}

/// A Service of these servers, at port 80.
pub(super) fn service(name: &str, kind: &str, more: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "type": kind,
            "selector": {"app": name},
            "ports": [
                {"name": "http", "port": 80, "targetPort": PORT},
                {"name": "udp", "port": 80, "targetPort": PORT, "protocol": "UDP"},
            ],
        },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    service
}

fn template(name: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [netexec()]},
    })
}

fn netexec() -> Value {
    json!({
        "name": "agnhost",
        "image": AGNHOST,
        "args": ["netexec", format!("--http-port={PORT}"), format!("--udp-port={PORT}")],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
    })
}

fn pod(name: &str, node: u8) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node_name(node), "terminationGracePeriodSeconds": 1},
    })
}
