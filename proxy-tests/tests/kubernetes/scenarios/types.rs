//! A Service changes its type, and its proxy.

use anyhow::Result;
use proxy_tests::{
    ECHO_PORT, ECHO_TARGET, Host,
    kubernetes::{Namespace, Probe, shared},
};

use super::{DUAL, NODE_PORT, cluster_ips, from_outside, reach};

/// Of all NodePorts those below 30086 are never chosen by the API server unless
/// the others are used up.
const PORT: u16 = 30_080;
const ALIAS: &str = "type: ExternalName, externalName: example.com";

/// Applies the Service `echo` of a type. A NodePort that the API server chooses
/// would differ between the protocols of a Service that had none before.
fn apply(namespace: &Namespace<'_>, fields: &str) -> Result<()> {
    let node_port = match fields {
        NODE_PORT => format!(", nodePort: {PORT}"),
        _ => String::new(),
    };
    let port = |name: &str| {
        let protocol = name.to_uppercase();
        format!(
            "{{ name: {name}, port: {ECHO_PORT}, protocol: {protocol}, \
             targetPort: {ECHO_TARGET}{node_port} }}"
        )
    };
    let (tcp, udp) = (port("tcp"), port("udp"));
    namespace.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: echo }}
spec: {{ {fields}, selector: {{ app: echo }}, ports: [{tcp}, {udp}] }}
"
    ))
}

fn nobody(probes: &[Probe<'_>]) -> Result<()> {
    probes.iter().try_for_each(Probe::reaches_nobody)
}

/// S2: every change between the three types, both ways. A type that has no
/// address or port leaves none behind, at no node.
#[test]
fn types_change_to_and_fro() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("types")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let backends: [&Host; 2] = [&local, &remote];

    apply(&namespace, ALIAS)?;
    for (first, second) in [(DUAL, NODE_PORT), (NODE_PORT, DUAL)] {
        let mut doors = Vec::new();
        for fields in [first, second] {
            apply(&namespace, fields)?;
            let internal = cluster_ips(&namespace, "echo", &client)?;
            reach(&internal, &backends)?;
            doors.extend(internal);
            if fields == NODE_PORT {
                for node in 0..2 {
                    let external = from_outside(&namespace, node, PORT);
                    reach(&external, &backends)?;
                    doors.extend(external);
                }
            }
        }
        if second == DUAL {
            // A cluster IP is all that is left.
            nobody(&doors[2..6])?;
            reach(&doors[..2], &backends)?;
        }
        apply(&namespace, ALIAS)?;
        nobody(&doors)?;
    }
    Ok(())
}

/// S1: the label hands a Service with all its frontends to another proxy.
#[test]
fn another_proxy_takes_over_and_gives_back() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("proxy-name")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let backends: [&Host; 2] = [&local, &remote];
    namespace.apply_echo("echo", NODE_PORT)?;
    let port = namespace.service("echo")?.node_port()?;
    let mut doors = cluster_ips(&namespace, "echo", &client)?.to_vec();
    doors.extend(from_outside(&namespace, 0, port));
    for value in ["another", ""] {
        reach(&doors, &backends)?;
        let label = format!("service.kubernetes.io/service-proxy-name={value}");
        namespace.kubectl(&["label", "service", "echo", &label])?;
        nobody(&doors)?;
        // Endpoints that change meanwhile count afterwards.
        remote.set_ready(false)?;
        let removal = "service.kubernetes.io/service-proxy-name-";
        namespace.kubectl(&["label", "service", "echo", removal])?;
        reach(&doors, &[&local])?;
        remote.set_ready(true)?;
    }
    reach(&doors, &backends)
}
