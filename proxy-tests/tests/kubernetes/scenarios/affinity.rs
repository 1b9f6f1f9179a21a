//! Session affinity is switched on and off under clients of every kind.

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    Host,
    kubernetes::{Namespace, Probe, Protocol, shared},
};
use serde_json::json;

use super::{NODE_PORT, cluster_ips, from_outside, node_ports, reach};

fn set(namespace: &Namespace<'_>, affinity: &str) -> Result<()> {
    // The API server wants the configuration gone together with the affinity.
    let patch = json!({ "spec": { "sessionAffinity": affinity, "sessionAffinityConfig": null } });
    namespace.patch("service/echo", &patch)
}

/// The one server of all these doors, by protocol (S71: per port of a Service,
/// whatever address is used).
fn same(doors: &[Probe<'_>], protocol: Protocol) -> Result<String> {
    let servers = doors
        .iter()
        .map(|door| door.sticks(protocol))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        servers.iter().all(|server| *server == servers[0]),
        "{servers:?}"
    );
    servers.into_iter().next().context("no door")
}

/// S75: on and off act on new connections at once; S74: a backend that leaves
/// is replaced, and does not come back for those that it has lost.
#[test]
fn affinity_is_switched_on_and_off() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("affinity")?;
    let pod = namespace.client(0, "client")?;
    let pods = namespace.backends([(0, "local"), (1, "remote")])?;
    let backends: [&Host; 2] = [&pods[0], &pods[1]];
    namespace.apply_echo("echo", NODE_PORT)?;
    let port = namespace.service("echo")?.node_port()?;
    let inside = cluster_ips(&namespace, "echo", &pod)?;
    let node = node_ports(&namespace, &pod, port);
    let outside = from_outside(&namespace, 0, port);
    for _ in 0..2 {
        for doors in [&inside, &node, &outside] {
            reach(doors, &backends)?;
        }
        set(&namespace, "ClientIP")?;
        for protocol in Protocol::BOTH {
            for index in 0..2 {
                same(&[inside[index], node[index]], protocol)?;
                same(&[outside[index]], protocol)?;
            }
        }
        let doors = [inside[0], node[0]];
        let kept = same(&doors, Protocol::Tcp)?;
        let [leaving, staying] = if pods[0].name() == kept {
            [&pods[0], &pods[1]]
        } else {
            [&pods[1], &pods[0]]
        };
        leaving.set_ready(false)?;
        reach(&inside, &[staying])?;
        leaving.set_ready(true)?;
        for protocol in Protocol::BOTH {
            ensure!(same(&doors, protocol)? == staying.name());
        }
        set(&namespace, "None")?;
    }
    for doors in [&inside, &node, &outside] {
        reach(doors, &backends)?;
    }
    Ok(())
}

/// S73, S76: a policy comes before what affinity remembers, and does not make
/// it forget: what its clients had before is theirs again afterwards.
#[test]
fn affinity_keeps_to_the_policy() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("affinity-local")?;
    let pods = namespace.backends([(0, "local"), (1, "remote")])?;
    let backends: [&Host; 2] = [&pods[0], &pods[1]];
    namespace.apply_echo("echo", NODE_PORT)?;
    let port = namespace.service("echo")?.node_port()?;
    let [here, there] = [0, 1].map(|node| from_outside(&namespace, node, port));
    let doors = [here, there].concat();
    let policy = |policy: &str| {
        let patch = json!({ "spec": { "externalTrafficPolicy": policy } });
        namespace.patch("service/echo", &patch)
    };
    reach(&doors, &backends)?;
    set(&namespace, "ClientIP")?;
    let mut remembered = Vec::new();
    for door in &doors {
        for protocol in Protocol::BOTH {
            remembered.push((door, protocol, door.sticks(protocol)?));
        }
    }
    for _ in 0..2 {
        policy("Local")?;
        reach(&here, &backends[..1])?;
        reach(&there, &backends[1..])?;
        policy("Cluster")?;
        for (door, protocol, server) in &remembered {
            let server = if pods[0].name() == server {
                backends[0]
            } else {
                backends[1]
            };
            door.reaches_over(*protocol, &[server])?;
        }
    }
    set(&namespace, "None")?;
    reach(&doors, &backends)
}
