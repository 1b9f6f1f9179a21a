//! Nodes whose network card is a port of a bridge that has the node's
//! addresses, as hosts of virtual machines have it.

use std::fmt::Write;

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Service, Topology, Wiring,
    addressing,
    manifest::Endpoint,
    traffic::{Server, expect_everything},
};
use rstest::rstest;

const FLAT: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// Makes eth0 a port of the bridge and gives that what eth0 has.
fn bridge_uplink(node: &Node, bridge: &str) -> Result<()> {
    let mut batch = String::new();
    if bridge != "cni0" {
        writeln!(batch, "link add {bridge} type bridge\nlink set {bridge} up")?;
    }
    writeln!(batch, "link set eth0 master {bridge}\naddr flush dev eth0")?;
    for address in node.addresses().list() {
        let family = Family::of(address);
        writeln!(
            batch,
            "addr add {address}/{} dev {bridge} nodad\nroute replace default via {} dev {bridge}",
            addressing::subnet_length(family),
            addressing::lan(family, 0, 1),
        )?;
        for number in 1..=2 {
            if number != node.index() {
                let pods = addressing::pod_cidr(family, number);
                let next = addressing::lan(family, 0, 10 + number);
                writeln!(batch, "route replace {pods} via {next} dev {bridge}")?;
            }
        }
    }
    node.ip(&batch)
}

#[rstest]
#[case::of_its_own(Topology::ROUTED, "br-ex")]
#[case::with_pods(FLAT, "cni0")]
fn everybody_is_served(
    #[case] topology: Topology,
    #[case] bridge: &str,
    #[values(true, false)] drop_invalid: bool,
) -> Result<()> {
    let lab = Lab::start(Topology {
        drop_invalid,
        ..topology
    })?;
    let node = &lab.nodes[0];
    bridge_uplink(node, bridge)?;
    let [client, local] = node.add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends: [(&Host, Endpoint); 3] = [
        (&local, Endpoint::from(&local)),
        (&remote, Endpoint::from(&remote)),
        (node, Endpoint::from(node)),
    ];
    let mut servers = Vec::new();
    let mut services = Vec::new();
    for (number, (host, endpoint)) in (1..).zip(backends) {
        servers.push(Server::start(host, ECHO_TARGET)?);
        let service = Service::echo_as(host.name(), number, lab.families()).endpoint(endpoint);
        lab.manifests
            .write_objects(&format!("service-{}", host.name()), &service.objects())?;
        services.push(service);
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for host in [&*client, &*local, node, &lab.external] {
            for service in &services {
                let frontend = service.at(family, ECHO_PORT);
                host.run(|| expect_everything(frontend))
                    .with_context(|| format!("{family}, {} to {}", host.name(), service.name()))?;
            }
        }
    }
    Ok(())
}
