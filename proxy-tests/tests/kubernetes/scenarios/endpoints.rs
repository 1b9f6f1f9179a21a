//! Endpoints come and go, by the controller's hand and by the API server's.

use std::{
    net::{IpAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use proxy_tests::{
    ECHO_PORT, Family, Host, eventually,
    kubernetes::{Probe, shared},
    traffic::{TcpClient, UdpClient},
};

use super::{DUAL, LIMIT, NODE_PORT, cluster_ips, from_outside, reach};

/// The Service that leads to the API server itself.
#[test]
fn the_api_server_is_reached_at_its_cluster_ip() -> Result<()> {
    let cluster = shared()?;
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
    let cluster = shared()?;
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

/// S77, S78: an open UDP conversation goes on with whoever serves, from a pod
/// and from outside, also after a time without anybody. S79: a TCP connection
/// stays where it is.
#[test]
fn conversations_follow_pods_that_serve() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("cycles")?;
    let pod = namespace.client(0, "client")?;
    let [first, second] = namespace.backends([(0, "first"), (1, "second")])?;
    second.set_ready(false)?;
    namespace.apply_echo("echo", NODE_PORT)?;
    let service = namespace.service("echo")?;
    let (external, node) = (&cluster.lab().external, &cluster.lab().nodes[0]);
    reach(&cluster_ips(&namespace, "echo", &pod)?, &[&first])?;
    reach(
        &from_outside(&namespace, 0, service.node_port()?),
        &[&first],
    )?;

    let mut talks = Vec::new();
    let mut calls = Vec::new();
    for family in Family::BOTH {
        let inside = service.at(family, ECHO_PORT)?;
        let outside = node.at(family, service.node_port()?);
        for (client, target) in [(&*pod, inside), (external, outside)] {
            let talk = client.run(|| UdpClient::connect(target))?;
            talk.set_patience(Duration::from_millis(200))?;
            talks.push(talk);
            let mut call = client.run(|| TcpClient::to(target).connect())?;
            call.start_echo()?;
            calls.push(call);
        }
    }
    let talk_to = |server: &Host| -> Result<()> {
        for talk in &talks {
            eventually("the conversation goes on", LIMIT, || {
                let answer = talk.ask(b"who?")?;
                ensure!(answer.server == server.name(), "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    };
    talk_to(&first)?;
    for _ in 0..2 {
        for (leaving, coming) in [(&first, &second), (&second, &first)] {
            leaving.set_ready(false)?;
            for talk in &talks {
                eventually("nobody answers", LIMIT, || match talk.ask(b"anybody?") {
                    Err(_) => Ok(()),
                    Ok(answer) => bail!("{answer:?}"),
                })?;
            }
            coming.set_ready(true)?;
            talk_to(coming)?;
        }
    }
    for call in &mut calls {
        call.echo(b"still here")?;
    }
    Ok(())
}
