//! A pod reaches itself through its Service.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Lab, Topology, Wiring,
    traffic::{TcpClient, UdpClient, ask_tcp, ask_udp, spread_udp},
};
use rstest::rstest;

/// Bytes of a transfer.
const LARGE: usize = 50 << 20;
const VETH: Topology = Topology::ONE_NODE;
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};

/// It works, and the pod does not see its own address as the client's: it
/// would answer itself directly (S65).
#[rstest]
#[case::routed_veth(VETH)]
#[case::routed_veth_firewall(Topology { drop_invalid: true, masquerade: true, ..VETH })]
#[case::bridge(BRIDGE)]
#[case::bridge_firewall(Topology { drop_invalid: true, masquerade: true, ..BRIDGE })]
#[case::bridge_netfilter(Topology { bridge_netfilter: true, masquerade: true, ..BRIDGE })]
#[case::bridge_netfilter_firewall(Topology { bridge_netfilter: true, drop_invalid: true, ..BRIDGE })]
fn a_pod_reaches_itself(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let pod = node.add_pod("pod")?;
    let service = lab.serve([&pod])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        let nodes_own = node.device_addresses(family)?;
        let tcp = pod
            .run(|| ask_tcp(frontend))
            .with_context(|| format!("{family} TCP"))?;
        assert!(nodes_own.contains(&tcp.client.ip()), "{tcp:?}");
        let udp = pod
            .run(|| ask_udp(frontend, 64))
            .with_context(|| format!("{family} UDP"))?;
        assert!(nodes_own.contains(&udp.client.ip()), "{udp:?}");
        pod.run(|| TcpClient::to(frontend).connect()?.upload(LARGE))
            .with_context(|| format!("{family} upload"))?;
        pod.run(|| TcpClient::to(frontend).connect()?.download(LARGE))
            .with_context(|| format!("{family} download"))?;
        let socket = pod.run(|| UdpClient::connect(frontend))?;
        for length in [1, 1400, 2000, 8000, 30_000] {
            let answer = socket.ask(&vec![7; length]);
            answer.with_context(|| format!("{family} UDP, {length} bytes"))?;
        }
    }
    Ok(())
}

/// A pod that is one of several endpoints reaches itself and the others from
/// ports all alike, many connections at the same time.
#[rstest]
#[case::routed_veth(Topology::ROUTED)]
#[case::bridge(Topology { wiring: Wiring::Bridge, ..Topology::ROUTED })]
#[case::flannel(Topology { drop_invalid: true, ..Topology::FLANNEL })]
fn a_pod_is_one_of_several_endpoints(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [pod, neighbour] = lab.nodes[0].add_pods(["pod", "neighbour"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends = [pod, neighbour, remote];
    let service = lab.serve(&backends)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let pod = &backends[0];
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        pod.run(|| -> Result<()> {
            let mut connections = Vec::new();
            for _ in 0..50 {
                let mut connection = TcpClient::to(frontend).connect()?;
                connection.start_echo()?;
                connections.push(connection);
            }
            for _ in 0..3 {
                for connection in &mut connections {
                    let server = connection.answer.server.clone();
                    connection.echo(b"still").with_context(|| server)?;
                }
            }
            let servers: BTreeSet<_> = connections
                .iter()
                .map(|connection| connection.answer.server.as_str())
                .collect();
            assert_eq!(servers.len(), backends.len(), "{servers:?}");
            for connection in &connections {
                // Nobody else is in need of a masquerade.
                let own = connection.answer.client.ip() == pod.address(family);
                assert_eq!(own, connection.answer.server != pod.name());
            }
            assert_eq!(spread_udp(frontend, 50)?.len(), backends.len());
            Ok(())
        })
        .with_context(|| family.to_string())?;
    }
    Ok(())
}
