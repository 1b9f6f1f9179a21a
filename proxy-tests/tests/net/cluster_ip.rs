//! Pods reach Services at their cluster IPs, whatever joins the pods.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Families, Family, Host, Lab, PodNetwork, Service,
    Topology, Wiring,
    traffic::{TcpClient, UdpClient, ask_tcp, spread_tcp, spread_udp},
};
use rstest::rstest;

/// With two backends, one is missed this many times in a row once in 10^12.
const ENOUGH: usize = 40;

const VETH: Topology = two_nodes(Wiring::RoutedVeth, PodNetwork::Routes);
const BRIDGE: Topology = two_nodes(Wiring::Bridge, PodNetwork::Routes);
const VXLAN_VETH: Topology = two_nodes(Wiring::RoutedVeth, PodNetwork::Vxlan);
const VXLAN_BRIDGE: Topology = two_nodes(Wiring::Bridge, PodNetwork::Vxlan);

const fn two_nodes(wiring: Wiring, pod_network: PodNetwork) -> Topology {
    Topology {
        nodes: 2,
        wiring,
        pod_network,
        ..Topology::ONE_NODE
    }
}

/// The client's own node and the other node have a backend each. Both answer,
/// see the client's address, and to the client seem to be the Service.
#[rstest]
#[case::routed_veth(VETH)]
#[case::routed_veth_firewall(Topology { drop_invalid: true, masquerade: true, ..VETH })]
#[case::routed_veth_ipv4(Topology { families: Families::V4Only, ..VETH })]
#[case::routed_veth_ipv6(Topology { families: Families::V6Only, ..VETH })]
#[case::bridge(BRIDGE)]
#[case::bridge_firewall(Topology { drop_invalid: true, masquerade: true, ..BRIDGE })]
#[case::bridge_netfilter(Topology { bridge_netfilter: true, ..BRIDGE })]
#[case::bridge_netfilter_firewall(Topology { bridge_netfilter: true, drop_invalid: true, masquerade: true, ..BRIDGE })]
#[case::bridge_ipv4(Topology { families: Families::V4Only, ..BRIDGE })]
#[case::bridge_ipv6(Topology { families: Families::V6Only, ..BRIDGE })]
#[case::vxlan_veth(Topology { masquerade: true, ..VXLAN_VETH })]
#[case::vxlan_bridge(Topology { masquerade: true, ..VXLAN_BRIDGE })]
#[case::vxlan_flannel(Topology { masquerade: true, drop_invalid: true, bridge_netfilter: true, ..VXLAN_BRIDGE })]
#[case::vxlan_ipv4(Topology { families: Families::V4Only, masquerade: true, ..VXLAN_BRIDGE })]
#[case::vxlan_ipv6(Topology { families: Families::V6Only, masquerade: true, ..VXLAN_BRIDGE })]
fn pods_reach_local_and_remote_backends(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends = [local, remote];
    let service = lab.serve(&backends)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let both: BTreeSet<_> = backends.iter().map(|pod| pod.name().to_owned()).collect();
    for &family in lab.families().list() {
        let over_tcp = client.run(|| tcp_servers(&service, family, &client));
        assert_eq!(over_tcp.with_context(|| format!("{family} TCP"))?, both);
        let over_udp = client.run(|| udp_servers(&service, family, &client));
        assert_eq!(over_udp.with_context(|| format!("{family} UDP"))?, both);
    }
    Ok(())
}

fn tcp_servers(service: &Service, family: Family, client: &Host) -> Result<BTreeSet<String>> {
    let frontend = service.at(family, ECHO_PORT);
    let mut servers = BTreeSet::new();
    for attempt in 0..ENOUGH {
        let mut connection = TcpClient::to(frontend)
            .connect()
            .with_context(|| format!("attempt {attempt}"))?;
        assert_eq!(connection.answer.client, connection.local_addr()?);
        assert_eq!(connection.answer.client.ip(), client.address(family));
        assert_eq!(connection.answer.local.port(), ECHO_TARGET);
        assert_eq!(connection.peer_addr()?, frontend);
        connection.start_echo()?;
        connection.echo(b"again")?;
        servers.insert(connection.answer.server);
    }
    Ok(servers)
}

fn udp_servers(service: &Service, family: Family, client: &Host) -> Result<BTreeSet<String>> {
    let frontend = service.at(family, ECHO_PORT);
    let mut servers = BTreeSet::new();
    for attempt in 0..ENOUGH {
        let socket = UdpClient::connect(frontend)?;
        let answer = socket
            .ask(b"question")
            .with_context(|| format!("attempt {attempt}"))?;
        assert_eq!(answer.client, socket.local_addr()?);
        assert_eq!(answer.client.ip(), client.address(family));
        assert_eq!(socket.peer_addr()?, frontend);
        // A flow stays where it is.
        assert_eq!(socket.ask(b"another")?.server, answer.server);
        servers.insert(answer.server);
    }
    Ok(servers)
}

/// Each of three backends gets a fair share of the flows.
#[test]
fn flows_spread_evenly() -> Result<()> {
    const FLOWS: usize = 300;
    let lab = Lab::start(Topology::default())?;
    let client = lab.nodes[0].add_pod("client")?;
    let backends = lab.nodes[0].add_pods(["a", "b", "c"])?;
    let service = lab.serve(&backends)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for shares in [
            client.run(|| spread_tcp(frontend, FLOWS))?,
            client.run(|| spread_udp(frontend, FLOWS))?,
        ] {
            // 100 each; 60 is five standard deviations off.
            let fair = shares.values().all(|&share| share > 60);
            assert!(shares.len() == 3 && fair, "{family}: {shares:?}");
        }
    }
    Ok(())
}

/// A client with an IPv6 socket connects to an IPv4 Service (Java, Go, and every
/// other dual-stack client).
#[test]
fn mapped_addresses_reach_ipv4_services() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let mapped = mapped(service.at(Family::V4, ECHO_PORT));
    for host in [&*client, &*lab.nodes[0]] {
        let answer = host.run(|| ask_tcp(mapped)).context("TCP")?;
        assert!(answer.client.is_ipv4());
        let peer = host.run(|| -> Result<_> {
            let socket = UdpClient::connect(mapped)?;
            socket.ask(b"question").context("UDP")?;
            Ok(socket.peer_addr()?)
        })?;
        assert_eq!(peer, mapped);
    }
    Ok(())
}

fn mapped(address: std::net::SocketAddr) -> std::net::SocketAddr {
    match address.ip() {
        std::net::IpAddr::V4(v4) => (v4.to_ipv6_mapped(), address.port()).into(),
        std::net::IpAddr::V6(_) => address,
    }
}
