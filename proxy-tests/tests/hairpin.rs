//! A pod reaches itself through its Service.

use anyhow::{Context, Result};
use proxy_tests::traffic::{Dial, Server, ask_tcp, ask_udp};
use proxy_tests::{AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Service, Topology, Wiring};
use rstest::rstest;

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
    let _server = Server::start(&pod, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&pod);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let front_end = service.at(family, ECHO_PORT);
        let nodes_own = node.device_addresses(family)?;
        let tcp = pod
            .run(|| ask_tcp(front_end))
            .with_context(|| format!("{family} TCP"))?;
        assert!(nodes_own.contains(&tcp.client.ip()), "{tcp:?}");
        let udp = pod
            .run(|| ask_udp(front_end, 64))
            .with_context(|| format!("{family} UDP"))?;
        assert!(nodes_own.contains(&udp.client.ip()), "{udp:?}");
        pod.run(|| Dial::to(front_end).connect()?.upload(5_000_000))
            .with_context(|| format!("{family} upload"))?;
        pod.run(|| Dial::to(front_end).connect()?.download(5_000_000))
            .with_context(|| format!("{family} download"))?;
    }
    Ok(())
}
