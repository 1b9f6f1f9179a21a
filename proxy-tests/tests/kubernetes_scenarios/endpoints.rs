//! Endpoints come and go, by the controller's hand and by the API server's.

use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use proxy_tests::kubernetes::Probe;
use proxy_tests::{Host, eventually};

use crate::{DUAL, LIMIT, cluster, cluster_ips, reach};

/// The Service that leads to the API server itself.
#[test]
fn the_api_server_is_reached_at_its_cluster_ip() -> Result<()> {
    let cluster = cluster()?;
    let namespace = cluster.namespace("api-server")?;
    let client = namespace.client(1, "client")?;
    let kubernetes = cluster
        .kubectl()
        .get(&["--namespace", "default", "service", "kubernetes"])?;
    let address = kubernetes["spec"]["clusterIP"].as_str().context("no IP")?;
    let target = (address.parse::<IpAddr>()?, 443).into();
    eventually("TCP to the API server", LIMIT, || {
        client.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(500)))?;
        Ok(())
    })
}

/// Backends come and go with their readiness; without any, clients are told so.
#[test]
fn readiness_decides_who_serves() -> Result<()> {
    let cluster = cluster()?;
    let namespace = cluster.namespace("readiness")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo("echo", DUAL)?;
    let doors = cluster_ips(&namespace, "echo", &client)?;
    let served_by = |servers: &[&Host]| match servers {
        [] => doors.iter().try_for_each(Probe::is_refused),
        _ => reach(&doors, servers),
    };
    served_by(&[&local, &remote])?;
    for _ in 0..2 {
        local.set_ready(false)?;
        served_by(&[&remote])?;
        remote.set_ready(false)?;
        served_by(&[])?;
        local.set_ready(true)?;
        served_by(&[&local])?;
        remote.set_ready(true)?;
        served_by(&[&local, &remote])?;
    }
    Ok(())
}
