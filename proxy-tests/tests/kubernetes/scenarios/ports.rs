//! Ports are renamed, share a number, and are another number in each pod.

use std::time::Duration;

use anyhow::Result;
use proxy_tests::{
    ECHO_PORT, ECHO_TARGET, Family, Host, Pod,
    kubernetes::{ApiPod, ContainerPort, Namespace, Probe, Protocol, shared},
    traffic::Heartbeat,
};
use serde_json::json;

use super::{DUAL, NODE_PORT, cluster_ips, from_outside, node_ports, reach, undisturbed};

/// The Service `echo` without selector, with ports of these names.
fn service(namespace: &Namespace<'_>, fields: &str, [tcp, udp]: [&str; 2]) -> Result<()> {
    namespace.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: echo }}
spec: {{
  {fields},
  ports: [
    {{ name: {tcp}, port: {ECHO_PORT}, protocol: TCP }},
    {{ name: {udp}, port: {ECHO_PORT}, protocol: UDP }},
  ],
}}
"
    ))
}

/// Renames the two ports of the Service `echo`.
fn rename_ports(namespace: &Namespace<'_>, [tcp, udp]: [&str; 2]) -> Result<()> {
    let patch = json!([
        { "op": "replace", "path": "/spec/ports/0/name", "value": tcp },
        { "op": "replace", "path": "/spec/ports/1/name", "value": udp },
    ]);
    let patch = patch.to_string();
    let arguments = ["patch", "service", "echo", "--type=json", "--patch", &patch];
    namespace.kubectl(&arguments).map(drop)
}

/// Slices by hand, for each family one, that lead a port's name to a backend.
fn slices(namespace: &Namespace<'_>, protocol: Protocol, name: &str, backend: &Pod) -> Result<()> {
    for family in Family::BOTH {
        namespace.apply(&format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: echo-{}-{}
  labels: {{ kubernetes.io/service-name: echo }}
addressType: {family}
endpoints:
- addresses: ['{}']
  nodeName: {}
ports:
- {{ name: {name}, port: {ECHO_TARGET}, protocol: {protocol} }}
",
            family.api_name().to_lowercase(),
            protocol.to_string().to_lowercase(),
            backend.address(family),
            backend.node_name(),
        ))?;
    }
    Ok(())
}

/// S6, S20: endpoints are matched by name and protocol. The Service is renamed
/// first, or the slices are; a name that moves to the other protocol is
/// another port.
#[test]
fn renamed_ports_are_matched_by_name() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("renamed")?;
    let client = namespace.client(0, "client")?;
    let [backend] = namespace.backends([(1, "backend")])?;
    let name_slices = |[tcp, udp]: [&str; 2]| {
        slices(&namespace, Protocol::Tcp, tcp, &backend)?;
        slices(&namespace, Protocol::Udp, udp, &backend)
    };
    let (old, new) = (["web", "dns"], ["http", "names"]);
    service(&namespace, DUAL, old)?;
    name_slices(old)?;
    let doors = cluster_ips(&namespace, "echo", &client)?;
    reach(&doors, &[&backend])?;

    service(&namespace, DUAL, new)?;
    doors.iter().try_for_each(Probe::is_refused)?;
    name_slices(new)?;
    reach(&doors, &[&backend])?;

    let swapped = [new[1], new[0]];
    name_slices(swapped)?;
    doors.iter().try_for_each(Probe::is_refused)?;
    service(&namespace, DUAL, swapped)?;
    reach(&doors, &[&backend])
}

/// The controller renames what the Service renames, and open connections do
/// not notice.
#[test]
fn a_rename_leaves_connections_alone() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("rename")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo("echo", NODE_PORT)?;
    let doors = cluster_ips(&namespace, "echo", &client)?;
    let external = from_outside(&namespace, 1, namespace.service("echo")?.node_port()?);
    let backends: [&Host; 2] = [&local, &remote];
    reach(&doors, &backends)?;
    reach(&external, &backends)?;
    let view = namespace.service("echo")?;
    let mut beats = Vec::new();
    for family in Family::BOTH {
        let target = view.at(family, ECHO_PORT)?;
        beats.push(Heartbeat::tcp(&client, target, Duration::from_millis(5))?);
    }
    for names in [["web", "dns"], ["dns", "web"]] {
        rename_ports(&namespace, names)?;
        reach(&doors, &backends)?;
        reach(&external, &backends)?;
    }
    for beat in beats {
        undisturbed(&beat.stop()?)?;
    }
    Ok(())
}

/// S6, K20: one port number, at the cluster IP and at the nodes, leads each
/// protocol to backends of its own (in slices by hand: one selector has one
/// set). Either may go without the other noticing.
#[test]
fn protocols_share_a_number() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("shared-port")?;
    let client = namespace.client(0, "client")?;
    let [tcp, udp] = namespace.backends([(0, "tcp"), (1, "udp")])?;
    service(&namespace, NODE_PORT, ["web", "dns"])?;
    slices(&namespace, Protocol::Tcp, "web", &tcp)?;
    slices(&namespace, Protocol::Udp, "dns", &udp)?;
    let port = namespace.service("echo")?.node_port()?;
    let mut doors = cluster_ips(&namespace, "echo", &client)?.to_vec();
    doors.extend(node_ports(&namespace, &client, port));
    for node in 0..2 {
        doors.extend(from_outside(&namespace, node, port));
    }
    for door in &doors {
        door.reaches_over(Protocol::Tcp, &[&tcp])?;
        door.reaches_over(Protocol::Udp, &[&udp])?;
    }
    let patch = json!([{ "op": "remove", "path": "/spec/ports/0" }]).to_string();
    namespace.kubectl(&["patch", "service", "echo", "--type=json", "--patch", &patch])?;
    for door in &doors {
        door.reaches_nobody_over(Protocol::Tcp)?;
        door.reaches_over(Protocol::Udp, &[&udp])?;
    }
    Ok(())
}

/// The nodes' port gets another number; the old one leads nowhere.
#[test]
fn a_node_port_moves() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("moved-port")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let backends: [&Host; 2] = [&local, &remote];
    namespace.apply_echo("echo", NODE_PORT)?;
    let doors = |port| {
        let inside = node_ports(&namespace, &client, port);
        [inside, from_outside(&namespace, 1, port)].concat()
    };
    let first = namespace.service("echo")?.node_port()?;
    reach(&doors(first), &backends)?;
    let mut old = first;
    // Never chosen by the API server unless all others are in use.
    for new in [30_081, 30_082, first] {
        let patch = json!([
            { "op": "replace", "path": "/spec/ports/0/nodePort", "value": new },
            { "op": "replace", "path": "/spec/ports/1/nodePort", "value": new },
        ]);
        let patch = patch.to_string();
        namespace.kubectl(&["patch", "service", "echo", "--type=json", "--patch", &patch])?;
        reach(&doors(new), &backends)?;
        doors(old).iter().try_for_each(Probe::reaches_nobody)?;
        old = new;
    }
    Ok(())
}

/// S20: the controller makes a slice for each number that a name stands for,
/// and a pod with another number may take the place of one that goes.
#[test]
fn named_ports_differ_from_pod_to_pod() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("named-ports")?;
    let client = namespace.client(0, "client")?;
    let start = |node, name, port| {
        let ports = [("web", "TCP"), ("dns", "UDP")].map(|(name, protocol)| ContainerPort {
            name: name.to_owned(),
            port,
            protocol,
        });
        ApiPod::start(&namespace, node, name, "named", port, &ports)
    };
    let [low, high] = [start(0, "low", 1234)?, start(1, "high", 54_321)?];
    namespace.register([&low, &high].into_iter())?;
    low.set_ready(true)?;
    namespace.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: echo }}
spec:
  type: NodePort
  {DUAL}
  selector: {{ app: named }}
  ports:
  - {{ name: tcp, port: {ECHO_PORT}, protocol: TCP, targetPort: web }}
  - {{ name: udp, port: {ECHO_PORT}, protocol: UDP, targetPort: dns }}
"
    ))?;
    let mut doors = cluster_ips(&namespace, "echo", &client)?.to_vec();
    doors.extend(from_outside(
        &namespace,
        1,
        namespace.service("echo")?.node_port()?,
    ));
    reach(&doors, &[&low])?;
    high.set_ready(true)?;
    reach(&doors, &[&low, &high])?;
    low.set_ready(false)?;
    reach(&doors, &[&high])
}
