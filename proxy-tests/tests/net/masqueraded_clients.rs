//! Clients that are no pods: processes of a node, and hosts outside the
//! cluster that route Services to a node. Their connections are masqueraded.

use std::net::IpAddr;

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Topology, Wiring,
    manifest::Endpoint,
    traffic::{Server, TcpClient, UdpClient, ask_udp_patiently},
};
use rstest::rstest;

/// Bytes of a transfer.
const LARGE: usize = 20 << 20;
const FIREWALL: Topology = Topology {
    drop_invalid: true,
    ..Topology::FLANNEL
};
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// Every kind of backend answers a process of the node, and sees an address of
/// that node.
#[rstest]
fn host_processes_reach_services(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL, FIREWALL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    check(&lab, &lab.nodes[0])
}

/// The same for a host outside, by way of the first node.
#[rstest]
fn external_clients_reach_services(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL, FIREWALL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    check(&lab, &lab.external)
}

/// One Service for each kind of backend: a pod here, a pod there, and
/// processes with the network of either node.
fn check(lab: &Lab, client: &Host) -> Result<()> {
    let [here, there] = [&lab.nodes[0], &lab.nodes[1]];
    let [local, remote] = [here.add_pod("local")?, there.add_pod("remote")?];
    let backends: [(&Host, Endpoint); 4] = [
        (&local, Endpoint::from(&local)),
        (&remote, Endpoint::from(&remote)),
        (here, Endpoint::from(here)),
        (there, Endpoint::from(there)),
    ];
    let mut servers = Vec::new();
    let mut services = Vec::new();
    for (number, (host, endpoint)) in (1..).zip(backends) {
        servers.push(Server::start(host, ECHO_TARGET)?);
        let service = Service::echo_as(host.name(), number, lab.families()).endpoint(endpoint);
        // Its name is that of the backend's node, whose file must stay.
        lab.manifests
            .write_objects(&format!("service-{}", host.name()), &service.objects())?;
        services.push(service);
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for service in &services {
            let mut allowed = here.device_addresses(family)?;
            // Packets that end on the node itself need no masquerade (S67), and
            // those it sends to itself cannot bear its own address.
            if service.name() == here.name() {
                allowed.extend([client.address(family), service.cluster_ip(family)]);
            }
            client
                .run(|| use_service(service, family, &allowed))
                .with_context(|| format!("{family}, backend {}", service.name()))?;
        }
    }
    Ok(())
}

fn use_service(service: &Service, family: Family, masquerade: &[IpAddr]) -> Result<()> {
    let frontend = service.at(family, ECHO_PORT);
    let connection = TcpClient::to(frontend).connect().context("TCP")?;
    assert_eq!(connection.answer.server, service.name());
    assert!(
        masquerade.contains(&connection.answer.client.ip()),
        "TCP: {:?}",
        connection.answer
    );
    assert_eq!(connection.peer_addr()?, frontend);
    connection.upload(LARGE).context("upload")?;
    TcpClient::to(frontend)
        .connect()?
        .download(LARGE)
        .context("download")?;

    let socket = UdpClient::connect(frontend)?;
    let answer = socket.ask(b"question").context("UDP")?;
    assert_eq!(answer.server, service.name());
    assert!(masquerade.contains(&answer.client.ip()), "UDP: {answer:?}");
    assert_eq!(socket.peer_addr()?, frontend);
    for length in [2000, 8000, 30_000] {
        // The tunnel is narrower than the uplink.
        ask_udp_patiently(frontend, length)
            .with_context(|| format!("UDP in fragments, {length} bytes"))?;
    }
    Ok(())
}
