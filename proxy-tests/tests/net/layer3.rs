//! Devices without Ethernet header, such as those of VPNs: clients and backends
//! behind them.

use std::{io::ErrorKind, net::SocketAddr};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Host, Lab, Service, Topology, TunnelHost,
    addressing::{lan, pod},
    kernel::can_attach,
    manifest::Endpoint,
    traffic::{Server, TcpClient, UdpClient, ask_tcp, ask_udp},
};
use rstest::rstest;

const FIREWALL: Topology = Topology {
    drop_invalid: true,
    ..Topology::ROUTED
};

/// Everybody reaches every backend: those behind tunnels as clients and as
/// backends, pods, processes of the node, hosts outside, and a backend itself.
#[rstest]
fn everybody_reaches_everybody(#[values("tcx", "clsact")] attach: &str) -> Result<()> {
    if !can_attach(attach) {
        return Ok(());
    }
    let lab = Lab::start(FIREWALL)?;
    let node = &lab.nodes[0];
    let (member, guest) = tunnels(&lab)?;
    let local = node.add_pod("local")?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends: [(&Host, Endpoint); 4] = [
        (&member, Endpoint::from(&member)),
        (&local, Endpoint::from(&local)),
        (&remote, Endpoint::from(&remote)),
        (node, Endpoint::from(node)),
    ];
    let (mut servers, mut services) = (Vec::new(), Vec::new());
    for (number, (host, endpoint)) in (1..).zip(backends) {
        servers.push(Server::start(host, ECHO_TARGET)?);
        let service = Service::new(&format!("at-{}", host.name()), number, lab.families())
            .tcp(ECHO_PORT, ECHO_TARGET)
            .udp(ECHO_PORT, ECHO_TARGET)
            .endpoint(endpoint);
        lab.manifests.write(&service)?;
        services.push((host, service));
    }
    let _agents = lab.start_agents(&AgentOptions::with(&["--attach", attach]))?;

    let clients: [&Host; 5] = [&member, &guest, &local, node, &lab.external];
    for &family in lab.families().list() {
        for client in clients {
            for (backend, service) in &services {
                let frontend = service.at(family, ECHO_PORT);
                // Seen as it is, if it is a pod and another one than the backend.
                let is_pod = [member.name(), local.name()].contains(&client.name());
                let kept = is_pod && client.name() != backend.name();
                client
                    .run(|| exchange(frontend, kept.then(|| client.address(family))))
                    .with_context(|| {
                        format!("{family}, {} to {}", client.name(), backend.name())
                    })?;
            }
        }
    }
    Ok(())
}

/// A member of the cluster, with a pod's address, and a guest without one.
fn tunnels(lab: &Lab) -> Result<(TunnelHost, TunnelHost)> {
    let node = &lab.nodes[0];
    let member = lab.add_tunnel_host(node, "member", |family| pod(family, node.index(), 200))?;
    let guest = lab.add_tunnel_host(node, "guest", |family| lan(family, 100, 1))?;
    Ok((member, guest))
}

/// TCP both ways, and UDP in one piece and in several. `source` is what the
/// backend has to see.
fn exchange(frontend: SocketAddr, source: Option<std::net::IpAddr>) -> Result<()> {
    let connection = TcpClient::to(frontend).connect().context("TCP")?;
    if let Some(source) = source {
        assert_eq!(connection.answer.client.ip(), source);
    }
    assert_eq!(connection.peer_addr()?, frontend);
    connection.upload(1_000_000).context("upload")?;
    TcpClient::to(frontend)
        .connect()?
        .download(1_000_000)
        .context("download")?;
    let socket = UdpClient::connect(frontend)?;
    for length in [1, 1400, 2000, 8000] {
        let answer = socket
            .ask(&vec![7; length])
            .with_context(|| format!("UDP, {length} bytes"))?;
        if let Some(source) = source {
            assert_eq!(answer.client.ip(), source);
        }
    }
    Ok(())
}

/// Refusals go out by the device without Ethernet header, too, and errors of
/// backends behind it come in.
#[test]
fn refusals_reach_everybody() -> Result<()> {
    let lab = Lab::start(FIREWALL)?;
    let (member, guest) = tunnels(&lab)?;
    let local = lab.nodes[0].add_pod("local")?;
    let empty = echo_like("empty", 1, &lab);
    // Nobody listens there.
    let closed = echo_like("closed", 2, &lab).endpoint(&member);
    lab.manifests.write(&empty)?;
    lab.manifests.write(&closed)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let clients: [&Host; 5] = [&member, &guest, &local, &lab.nodes[0], &lab.external];
    for &family in lab.families().list() {
        for client in clients {
            for frontend in [
                empty.at(family, ECHO_PORT),
                empty.at(family, 81),
                closed.at(family, ECHO_PORT),
            ] {
                let context = format!("{} to {frontend}", client.name());
                let tcp = client
                    .run(|| ask_tcp(frontend))
                    .map_err(|error| error.kind());
                assert_eq!(tcp, Err(ErrorKind::ConnectionRefused), "TCP, {context}");
                let udp = client
                    .run(|| ask_udp(frontend, 9))
                    .map_err(|error| error.kind());
                assert_eq!(udp, Err(ErrorKind::ConnectionRefused), "UDP, {context}");
            }
        }
    }
    Ok(())
}

fn echo_like(name: &str, number: u8, lab: &Lab) -> Service {
    Service::echo_as(name, number, lab.families())
}
