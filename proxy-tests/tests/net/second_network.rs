//! Clients outside that come by a device without a route to a gateway: a second
//! network of the nodes, or a virtual router's address on a macvlan.

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Topology, Wiring,
    addressing::{host_length, lan, subnet_length},
    agent,
    host::Addresses,
    traffic::{Server, ask_tcp, ask_udp},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_082;
/// The second network.
const SECOND: u8 = 3;
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// They are masqueraded, for the endpoint on another node would answer them by
/// another way; pods of the node keep their address.
#[rstest]
fn clients_of_all_networks_are_served(
    #[values(Topology::ROUTED, BRIDGE)] topology: Topology,
) -> Result<()> {
    let mut lab = Lab::start(topology)?;
    let outsider = lab.add_external("outsider")?;
    let vips = Addresses::choose(lab.families(), |family| lan(family, 0, 90));
    join_second_network(&lab, &outsider)?;
    let (node, other) = (&lab.nodes[0], &lab.nodes[1]);
    let pod = node.add_pod("pod")?;
    add_virtual_router(node, vips)?;
    let remote = other.add_pod("remote")?;
    let _server = Server::start(&remote, ECHO_TARGET)?;
    let service = Service::echo(lab.families())
        .endpoint(&remote)
        .node_port(ECHO_PORT, NODE_PORT)
        .load_balancer(vips, "VIP");
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let second = SocketAddr::new(lan(family, SECOND, 11), NODE_PORT);
        let virtual_router = SocketAddr::new(vips.get(family).context("an address")?, ECHO_PORT);
        for (client, frontend) in [
            (&lab.external, node.at(family, NODE_PORT)),
            (&outsider, second),
            (&lab.external, virtual_router),
        ] {
            let context = || format!("{} to {frontend}", client.name());
            let sources = [
                client
                    .run(|| ask_tcp(frontend))
                    .with_context(context)?
                    .client
                    .ip(),
                client
                    .run(|| ask_udp(frontend, 64))
                    .with_context(context)?
                    .client
                    .ip(),
            ];
            assert_eq!(sources, [node.address(family); 2], "{}", context());
        }
        let explained = agent::command(
            node,
            &[
                "explain",
                "--from",
                &lan(family, SECOND, 100).to_string(),
                "--to",
                &second.to_string(),
                "-o",
                "json",
            ],
        )?;
        let explained: serde_json::Value = serde_json::from_str(&explained)?;
        assert_eq!(explained["masquerade"], true, "{explained}");
        let frontend = node.at(family, NODE_PORT);
        let answer = pod.run(|| ask_tcp(frontend)).context("the pod")?;
        assert_eq!(answer.client.ip(), pod.address(family));
    }
    Ok(())
}

/// Nodes and a client get a device `net2` on one more switch, and know nothing
/// of it but its subnet.
fn join_second_network(lab: &Lab, outsider: &Host) -> Result<()> {
    let mut switch = "link add net2 type bridge\nlink set net2 up\n".to_owned();
    let hosts: [(&Host, u8); 3] = [(&lab.nodes[0], 11), (&lab.nodes[1], 12), (outsider, 100)];
    for (host, number) in hosts {
        writeln!(
            switch,
            "link add net2-{number} type veth peer name net2 netns {}\n\
             link set net2-{number} master net2 up",
            host.netns()
        )?;
    }
    lab.underlay.switch().ip(&switch)?;
    for (host, number) in hosts {
        let mut batch = "link set net2 up\n".to_owned();
        for &family in lab.families().list() {
            let (address, length) = (lan(family, SECOND, number), subnet_length(family));
            writeln!(batch, "addr add {address}/{length} dev net2 nodad")?;
        }
        host.ip(&batch)?;
    }
    Ok(())
}

/// A virtual router's addresses, as keepalived makes them with `use_vmac`.
fn add_virtual_router(node: &Host, vips: Addresses) -> Result<()> {
    let mut batch =
        "link add vrrp.51 link eth0 address 00:00:5e:00:01:33 type macvlan mode private\n\
                     link set vrrp.51 up\n"
            .to_owned();
    for address in vips.list() {
        let length = host_length(Family::of(address));
        writeln!(batch, "addr add {address}/{length} dev vrrp.51 nodad")?;
    }
    node.ip(&batch)?;
    node.sysctls(&[
        // Answered with the virtual router's address, and from it only.
        ("net/ipv4/conf/eth0/arp_ignore", "1"),
        ("net/ipv4/conf/vrrp.51/accept_local", "1"),
        ("net/ipv4/conf/vrrp.51/rp_filter", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
    ])
}
