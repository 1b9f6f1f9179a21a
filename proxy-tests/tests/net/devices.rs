//! Devices and addresses come, go and change while the agent runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Topology, Wiring, eventually,
    traffic::{Server, TcpClient, ask_tcp, ask_udp},
};
use rstest::rstest;

/// From the pod's device to its first answer.
const ATTACHED_WITHIN: Duration = Duration::from_secs(5);
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};

/// Clients started later are served, many times over; so is a backend started
/// later.
#[rstest]
fn new_pods_are_served(#[values(Topology::ONE_NODE, BRIDGE)] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let service = Service::echo(lab.families());
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let backend = node.add_pod("backend")?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    lab.manifests.write(&service.clone().endpoint(&backend))?;
    for round in 0..10 {
        let client = node.add_pod(&format!("client-{round}"))?;
        expect_service(&client, &lab, &service).with_context(|| format!("pod {round}"))?;
    }
    Ok(())
}

/// A device is known by what it is, not by its name.
#[rstest]
fn renamed_devices_stay_served(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    expect_service(&client, &lab, &service)?;
    for (pod, name) in [(&client, "calico1"), (&backend, "calico2")] {
        node.ip(&format!("link set {} name {name}", pod.node_device()))?;
        expect_service(&client, &lab, &service).with_context(|| name.to_owned())?;
    }
    // The name that became free may be taken by another device.
    let late = node.add_pod("late")?;
    node.ip(&format!(
        "link set {} name {}",
        late.node_device(),
        client.node_device()
    ))?;
    expect_service(&late, &lab, &service)
}

/// A node that gets its addresses after the agent has started masquerades with
/// them.
#[test]
fn node_addresses_may_come_later() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let remote = lab.nodes[1].add_pod("remote")?;
    let service = lab.serve([&remote])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let (old, length) = (
            node.address(family),
            proxy_tests::addressing::subnet_length(family),
        );
        let new = proxy_tests::addressing::lan(family, 0, 50);
        let gateway = proxy_tests::addressing::lan(family, 0, 1);
        let services = proxy_tests::addressing::service_cidr(family);
        let pods = proxy_tests::addressing::pod_cidr(family, 2);
        let peer = lab.nodes[1].address(family);
        node.ip(&format!(
            "addr del {old}/{length} dev eth0\naddr add {new}/{length} dev eth0 nodad\n\
             route replace default via {gateway}\nroute replace {pods} via {peer}",
        ))?;
        lab.external
            .ip(&format!("route replace {services} via {new}"))?;
        for client in [&**node, &lab.external] {
            eventually("masqueraded with the new address", ATTACHED_WITHIN, || {
                let answer = client.run(|| quick(&service, family))?;
                ensure!(answer.client.ip() == new, "{answer:?}");
                Ok(())
            })
            .with_context(|| format!("{family}, {}", client.name()))?;
        }
    }
    Ok(())
}

fn quick(service: &Service, family: Family) -> std::io::Result<proxy_tests::traffic::Answer> {
    let tcp = TcpClient::to(service.at(family, ECHO_PORT)).within(Duration::from_millis(200));
    Ok(tcp.connect()?.answer)
}

/// The first answer comes in time, and from then on every one.
fn expect_service(client: &Host, lab: &Lab, service: &Service) -> Result<()> {
    for &family in lab.families().list() {
        eventually("first answer", ATTACHED_WITHIN, || {
            Ok(client.run(|| quick(service, family))?)
        })?;
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
        client.run(|| ask_udp(frontend, 64))?;
    }
    Ok(())
}
