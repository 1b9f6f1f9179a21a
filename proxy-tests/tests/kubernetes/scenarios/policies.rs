//! Traffic policies flip: new connections follow, open ones stay.

use std::time::Duration;

use anyhow::Result;
use proxy_tests::{
    ECHO_PORT, Family, Host,
    kubernetes::{Namespace, Probe, shared},
    traffic::Heartbeat,
};
use serde_json::json;

use super::{NODE_PORT, cluster_ips, from_outside, node_ports, reach, undisturbed};

fn set(namespace: &Namespace<'_>, field: &str, policy: &str) -> Result<()> {
    namespace.patch("service/echo", &json!({ "spec": { field: policy } }))
}

/// S39, S40, S43: clients outside stay on the node they connect to or are dropped
/// there; pods go everywhere. S10: neither policy touches the other's traffic.
#[test]
fn policies_flip() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("policies")?;
    let pod = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let both: [&Host; 2] = [&local, &remote];
    namespace.apply_echo("echo", NODE_PORT)?;
    let service = namespace.service("echo")?;
    let port = service.node_port()?;
    let inside = cluster_ips(&namespace, "echo", &pod)?;
    let short_cut = node_ports(&namespace, &pod, port);
    let [here, there] = [0, 1].map(|node| from_outside(&namespace, node, port));
    let external = "externalTrafficPolicy";
    let internal = "internalTrafficPolicy";

    for doors in [&inside, &short_cut, &here, &there] {
        reach(doors, &both)?;
    }
    let beat = Duration::from_millis(5);
    let mut beats = Vec::new();
    for family in Family::BOTH {
        let outside = cluster.lab().nodes[0].at(family, port);
        let inside = service.at(family, ECHO_PORT)?;
        for (client, target) in [(&cluster.lab().external, outside), (&*pod, inside)] {
            beats.push(Heartbeat::tcp(client, target, beat)?);
            beats.push(Heartbeat::udp(client, target, beat)?);
        }
    }
    for _ in 0..2 {
        set(&namespace, external, "Local")?;
        reach(&here, &[&local])?;
        reach(&there, &[&remote])?;
        reach(&short_cut, &both)?;
        reach(&inside, &both)?;

        set(&namespace, internal, "Local")?;
        reach(&inside, &[&local])?;
        reach(&short_cut, &both)?;

        set(&namespace, external, "Cluster")?;
        reach(&here, &both)?;
        reach(&there, &both)?;
        reach(&inside, &[&local])?;

        set(&namespace, internal, "Cluster")?;
        reach(&inside, &both)?;
    }
    for beat in beats {
        undisturbed(&beat.stop()?)?;
    }
    Ok(())
}

/// S43: dropped where endpoints are elsewhere, refused where there are none;
/// pods do not notice as long as there is one anywhere (S40).
#[test]
fn nodes_without_endpoints_drop_what_is_local() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("local-only")?;
    let pod = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo(
        "echo",
        &format!("{NODE_PORT}, externalTrafficPolicy: Local, internalTrafficPolicy: Local"),
    )?;
    let port = namespace.service("echo")?.node_port()?;
    let inside = cluster_ips(&namespace, "echo", &pod)?;
    let short_cut = node_ports(&namespace, &pod, port);
    let [here, there] = [0, 1].map(|node| from_outside(&namespace, node, port));
    reach(&here, &[&local])?;
    reach(&there, &[&remote])?;

    local.set_ready(false)?;
    here.iter().chain(&inside).try_for_each(Probe::is_ignored)?;
    reach(&there, &[&remote])?;
    reach(&short_cut, &[&remote])?;

    remote.set_ready(false)?;
    let all = [here, there, inside, short_cut];
    all.iter().flatten().try_for_each(Probe::is_refused)?;

    local.set_ready(true)?;
    reach(&here, &[&local])?;
    reach(&inside, &[&local])?;
    there.iter().try_for_each(Probe::is_ignored)
}
