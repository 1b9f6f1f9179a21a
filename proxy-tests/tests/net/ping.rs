//! Services answer pings at their addresses, as hosts would.

use std::time::Duration;

use anyhow::{Context, Result};
use proxy_tests::{AgentOptions, ECHO_PORT, Lab, Service, Topology, Wiring, traffic::ping_with};
use rstest::rstest;

const PATIENCE: Duration = Duration::from_secs(5);
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};
const FIREWALL: Topology = Topology {
    drop_invalid: true,
    masquerade: true,
    ..BRIDGE
};
/// Its packets' fragments are put together again before the hooks at egress.
const BRIDGE_NETFILTER: Topology = Topology {
    bridge_netfilter: true,
    ..FIREWALL
};

/// To pods, the node's own processes and clients outside, also with more than
/// fits one packet, and whether the Service has endpoints or not.
#[rstest]
fn services_answer_pings(
    #[values(Topology::ONE_NODE, BRIDGE, FIREWALL, BRIDGE_NETFILTER)] topology: Topology,
    #[values(6, 1400, 4000)] length: usize,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let served = Service::echo(lab.families()).endpoint(&backend);
    let empty = Service::new("empty", 2, lab.families()).tcp(ECHO_PORT, ECHO_PORT);
    lab.manifests.write(&served)?;
    lab.manifests.write(&empty)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let payload: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
    for &family in lab.families().list() {
        for host in [&*client, &*lab.nodes[0], &lab.external] {
            for service in [&served, &empty] {
                let target = service.at(family, ECHO_PORT).ip();
                let context = || format!("{} to {target}, {length} bytes", host.name());
                host.run(|| ping_with(&payload, target, PATIENCE))
                    .with_context(context)?;
            }
        }
    }
    Ok(())
}
