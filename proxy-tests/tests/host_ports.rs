//! Processes of the node as clients, whose ports and routes the kernel chooses.

use std::fmt::Write;

use anyhow::{Context, Result};
use proxy_tests::traffic::{OpenFlows, Server};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Service, Topology, Wiring, addressing,
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// Replies come in by the device that the route to the Service leads to now:
/// the reverse path filter would not let them pass at another one.
#[rstest]
fn open_flows_follow_the_route(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
    #[values(0, 1)] place: usize,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let backend = lab.nodes[place].add_pod("backend")?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    let switch = lab.underlay.switch();
    switch.ip(&format!(
        "link add p-second type veth peer name eth1 netns {}\n\
         link set p-second master lan up",
        node.netns()
    ))?;
    let mut batch = String::from("link set eth1 up\n");
    for &family in lab.families().list() {
        let (address, length) = (
            addressing::lan(family, 0, 77),
            addressing::subnet_length(family),
        );
        writeln!(batch, "addr add {address}/{length} dev eth1 nodad")?;
    }
    node.ip(&batch)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let mut flows = OpenFlows::start(node, service.at(family, ECHO_PORT))?;
        for device in ["eth1", "eth0"] {
            let gateway = addressing::lan(family, 0, 1);
            let services = addressing::service_cidr(family);
            node.ip(&format!(
                "route replace {services} via {gateway} dev {device}"
            ))?;
            flows
                .stay()
                .with_context(|| format!("{family}, {device}"))?;
        }
    }
    Ok(())
}
