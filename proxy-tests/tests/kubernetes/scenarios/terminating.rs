//! Pods that end serve as long as nobody else does, and those that are not
//! ready where the Service wants them.

use anyhow::Result;
use proxy_tests::{
    ECHO_PORT, Family, Host,
    kubernetes::{Probe, shared},
};
use serde_json::json;

use super::{NODE_PORT, cluster_ips, from_outside, reach};

/// S32, S33: only those that serve; nobody else comes first, and each set
/// falls back for itself.
#[test]
fn pods_that_end_are_the_last_resort() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("terminating")?;
    let [client, other] = [
        namespace.client(0, "client")?,
        namespace.client(1, "other")?,
    ];
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo(
        "echo",
        &format!("{NODE_PORT}, externalTrafficPolicy: Local"),
    )?;
    let port = namespace.service("echo")?.node_port()?;
    let mut inside = cluster_ips(&namespace, "echo", &client)?.to_vec();
    inside.extend(cluster_ips(&namespace, "echo", &other)?);
    let [here, there] = [0, 1].map(|node| from_outside(&namespace, node, port));
    let both: [&Host; 2] = [&local, &remote];
    reach(&inside, &both)?;

    // One ends: cluster IPs have the other, and its own node has but itself.
    local.terminate()?;
    reach(&inside, &[&remote])?;
    reach(&here, &[&local])?;
    reach(&there, &[&remote])?;

    // Both end: both serve.
    remote.terminate()?;
    reach(&inside, &both)?;
    reach(&here, &[&local])?;
    reach(&there, &[&remote])?;

    // One fails on its way out.
    remote.set_ready(false)?;
    reach(&inside, &[&local])?;
    reach(&here, &[&local])?;
    there.iter().try_for_each(Probe::is_ignored)?;

    local.set_ready(false)?;
    inside.iter().try_for_each(Probe::is_refused)?;
    here.iter().chain(&there).try_for_each(Probe::is_refused)
}

/// S19: the controller calls every pod ready, also one that ends and serves no
/// more, beside those that do.
#[test]
fn unready_pods_serve_where_they_are_published() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("published")?;
    let client = namespace.client(0, "client")?;
    let [ready, unready, ending] =
        namespace.backends([(0, "ready"), (1, "unready"), (1, "ending")])?;
    unready.set_ready(false)?;
    ending.set_ready(false)?;
    ending.terminate()?;
    namespace.apply_echo(
        "echo",
        &format!("{NODE_PORT}, externalTrafficPolicy: Local"),
    )?;
    let service = namespace.service("echo")?;
    let inside = Family::BOTH.map(|family| Ok(Probe::new(&client, service.at(family, ECHO_PORT)?)));
    let inside = inside.into_iter().collect::<Result<Vec<_>>>()?;
    let there = from_outside(&namespace, 1, service.node_port()?);
    for _ in 0..2 {
        reach(&inside, &[&ready])?;
        there.iter().try_for_each(Probe::is_ignored)?;
        let publish = |publish: bool| {
            let patch = json!({ "spec": { "publishNotReadyAddresses": publish } });
            namespace.patch("service/echo", &patch)
        };
        publish(true)?;
        reach(&inside, &[&ready, &unready, &ending])?;
        reach(&there, &[&unready, &ending])?;
        publish(false)?;
    }
    Ok(())
}
