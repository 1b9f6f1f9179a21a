//! Pods whose traffic other software sends by way of another device.

use std::fmt::Write;

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Node, Pod, Service, Topology, Wiring,
    traffic::{Server, expect_everything},
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// Does what the CNI's plugin `bandwidth` does for the packets that a pod sends: all that
/// comes in by its device goes out by an ifb device of its own, which delays it and
/// gives it back.
fn shape(node: &Node, pods: &[&Pod]) -> Result<()> {
    let (mut links, mut filters) = (String::new(), String::new());
    for (number, pod) in pods.iter().enumerate() {
        let (device, ifb) = (pod.node_device(), format!("bwp{number}"));
        writeln!(links, "link add {ifb} mtu 1500 type ifb\nlink set {ifb} up")?;
        writeln!(
            filters,
            "qdisc add dev {ifb} root tbf rate 1gbit burst 1mb latency 25ms\n\
             qdisc add dev {device} ingress\n\
             filter add dev {device} parent ffff: protocol all u32 match u32 0 0 \
             action mirred egress redirect dev {ifb}"
        )?;
    }
    node.ip(&links)?;
    node.feed("tc", &["-batch", "-"], &filters).map(drop)
}

#[rstest]
fn shaped_pods_are_clients_and_backends(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(Topology {
        drop_invalid: true,
        ..topology
    })?;
    let node = &lab.nodes[0];
    let [client, local] = node.add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    shape(node, &[&client, &local])?;
    let backends = [local, remote];
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let services = [1, 2].map(|number| {
        let backend = &backends[usize::from(number) - 1];
        Service::echo_as(backend.name(), number, lab.families()).endpoint(backend)
    });
    for service in &services {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for host in [&*client, &*backends[0], &lab.external, node] {
            for service in &services {
                let frontend = service.at(family, ECHO_PORT);
                host.run(|| expect_everything(frontend))
                    .with_context(|| format!("{family}, {} to {}", host.name(), service.name()))?;
            }
        }
    }
    Ok(())
}
