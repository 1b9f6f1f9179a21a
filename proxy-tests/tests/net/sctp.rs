//! SCTP Services with real devices, routing and netfilter, whose conntrack
//! checks checksums, too.

use std::time::Duration;

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, Lab, Service, Topology, Wiring,
    traffic::{SctpServer, ask_sctp},
};
use rstest::rstest;

const PATIENCE: Duration = Duration::from_secs(5);
const LENGTHS: [usize; 4] = [0, 1, 100, 1300];
/// A port with another target, and one with its own.
const PORTS: [(u16, u16); 2] = [(80, 9000), (9000, 9000)];

const VETH: Topology = Topology {
    nodes: 2,
    ..Topology::ONE_NODE
};
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..VETH
};
const FIREWALL: Topology = Topology {
    drop_invalid: true,
    masquerade: true,
    ..BRIDGE
};

/// Pods, processes of the node (masqueraded, or with a port of their own) and
/// clients outside reach backends here and on another node.
#[rstest]
fn associations_reach_their_backends(
    #[values(VETH, BRIDGE, FIREWALL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let families = lab.families().list();
    let _servers = [
        SctpServer::start(&local, families, 9000)?,
        SctpServer::start(&remote, families, 9000)?,
    ];
    let service = |name, number, pod| {
        let service = Service::new(name, number, lab.families()).endpoint(pod);
        PORTS.into_iter().fold(service, |service, (port, target)| {
            service.sctp(port, target)
        })
    };
    let services = [service("near", 1, &local), service("far", 2, &remote)];
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let mut source = 40_000;
    for &family in families {
        for host in [&*client, &*lab.nodes[0], &lab.external] {
            for service in &services {
                for (port, _) in PORTS {
                    let target = service.at(family, port);
                    source += 1;
                    host.run(|| ask_sctp(target, source, &LENGTHS, PATIENCE))
                        .with_context(|| {
                            format!("{} to {} at {target}", host.name(), service.name())
                        })?;
                }
            }
        }
    }
    Ok(())
}
