//! The address of a node that a masqueraded packet gets: the one that netfilter's
//! MASQUERADE takes on the same node, however many addresses a card has and
//! whenever they were assigned.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Service, Topology,
    addressing::{host_length, lan, pod, pod_cidr, subnet_length},
    eventually,
    host::Addresses,
    traffic::{PATIENCE, Server, ask_tcp, ask_udp},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_081;

/// The subnet whose address was assigned first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    Public,
    Private,
}

/// The time at which a load balancer's address comes to the card.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Vip {
    Never,
    BeforeTheAgent,
    UnderTheAgent,
}

/// The other node is reached in the private subnet only, and does not know the
/// way to the public one.
#[rstest]
fn the_next_hop_decides(
    #[values(First::Public, First::Private)] first: First,
    #[values(Vip::Never, Vip::BeforeTheAgent, Vip::UnderTheAgent)] vip: Vip,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let [node, other] = [&lab.nodes[0], &lab.nodes[1]];
    two_subnets(&lab, first)?;
    let remote = other.add_pod("remote")?;
    let _server = Server::start(&remote, ECHO_TARGET)?;
    let vips = Addresses::choose(lab.families(), |family| lan(family, 0, 99));
    let mut service = Service::echo(lab.families())
        .endpoint(&remote)
        .node_port(ECHO_PORT, NODE_PORT);
    if vip != Vip::Never {
        service = service.load_balancer(vips, "VIP");
    }
    lab.manifests.write(&service)?;
    if vip == Vip::BeforeTheAgent {
        assign(node, vips)?;
    }

    let mut expected = Vec::new();
    for &family in lab.families().list() {
        let target = remote.at(family, ECHO_TARGET);
        node.nft(&control(family, target))?;
        for client in [&lab.external, &**node] {
            let answer = client.run(|| ask_tcp(node.at(family, NODE_PORT)));
            let context = || format!("{family} through netfilter, {}", client.name());
            let source = answer.with_context(context)?.client.ip();
            ensure!(source == private(family, 11), "netfilter: {source}");
            expected.push(source);
        }
        node.exec("nft", &["flush", "ruleset"])?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    if vip == Vip::UnderTheAgent {
        assign(node, vips)?;
    }
    let mut expected = expected.into_iter();
    for &family in lab.families().list() {
        let frontends = [
            (&lab.external, node.at(family, NODE_PORT)),
            (&**node, service.at(family, ECHO_PORT)),
        ];
        for (client, frontend) in frontends {
            let source = expected.next().context("a control for each")?;
            seen_as(client, frontend, source)?;
        }
        if vip != Vip::Never {
            let frontend = SocketAddr::new(vips.get(family).context("an address")?, ECHO_PORT);
            seen_as(&lab.external, frontend, private(family, 11))?;
        }
    }
    Ok(())
}

/// A load balancer's address that comes to the uplink is no masquerade address,
/// and the endpoint's node does not refuse what its pods answer to it.
#[rstest]
fn a_load_balancers_address_is_not_taken(
    #[values(Vip::BeforeTheAgent, Vip::UnderTheAgent)] vip: Vip,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let remote = lab.nodes[1].add_pod("remote")?;
    let _server = Server::start(&remote, ECHO_TARGET)?;
    let vips = Addresses::choose(lab.families(), |family| lan(family, 0, 99));
    let service = Service::echo(lab.families())
        .endpoint(&remote)
        .load_balancer(vips, "VIP")
        .node_port(ECHO_PORT, NODE_PORT);
    lab.manifests.write(&service)?;
    if vip == Vip::BeforeTheAgent {
        assign(node, vips)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    assign(node, vips)?;
    for &family in lab.families().list() {
        let own = node.address(family);
        let vip = vips.get(family).context("an address")?;
        seen_as(&lab.external, SocketAddr::new(vip, ECHO_PORT), own)?;
        seen_as(&lab.external, node.at(family, NODE_PORT), own)?;
        seen_as(node, service.at(family, ECHO_PORT), own)?;
    }
    Ok(())
}

/// A load balancer may be served at the node's only address, as k3s does: the
/// replies of endpoints on other nodes, which have the same load balancer, come
/// back all the same.
#[test]
fn the_only_address_may_be_a_load_balancers() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let remote = lab.nodes[1].add_pod("remote")?;
    let _server = Server::start(&remote, ECHO_TARGET)?;
    let service = Service::echo(lab.families())
        .endpoint(&remote)
        .load_balancer(node.addresses(), "VIP")
        .node_port(ECHO_PORT, NODE_PORT);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let own = node.address(family);
        seen_as(&lab.external, node.at(family, ECHO_PORT), own)?;
        seen_as(&lab.external, node.at(family, NODE_PORT), own)?;
        seen_as(node, service.at(family, ECHO_PORT), own)?;
    }
    Ok(())
}

/// A node whose only IPv6 addresses are link-local masquerades a pod that reaches
/// itself to that of the pod's device, as netfilter does.
#[test]
fn link_local_addresses_do_where_there_are_no_others() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let pod = node.add_pod("pod")?;
    let service = lab.serve([&pod])?;
    let uplink = node.address(Family::V6);
    node.ip(&format!(
        "addr del {uplink}/{} dev eth0",
        subnet_length(Family::V6)
    ))?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        pod.run(|| ask_tcp(frontend))
            .with_context(|| format!("TCP to {frontend}"))?;
        pod.run(|| ask_udp(frontend, 64))
            .with_context(|| format!("UDP to {frontend}"))?;
    }
    Ok(())
}

/// The endpoint answers over TCP and UDP, and sees this source.
fn seen_as(client: &Host, frontend: SocketAddr, source: IpAddr) -> Result<()> {
    eventually("the endpoint sees the node's address", PATIENCE, || {
        let context = || format!("{} to {frontend}", client.name());
        let tcp = client.run(|| ask_tcp(frontend)).with_context(context)?;
        ensure!(tcp.client.ip() == source, "TCP, {}: {tcp:?}", context());
        let udp = client.run(|| ask_udp(frontend, 64)).with_context(context)?;
        ensure!(udp.client.ip() == source, "UDP, {}: {udp:?}", context());
        Ok(())
    })
}

/// Puts both nodes into the private subnet; the second one leaves the public
/// one. External clients route load balancers to the first node.
fn two_subnets(lab: &Lab, first: First) -> Result<()> {
    let [node, other] = [&lab.nodes[0], &lab.nodes[1]];
    let (mut here, mut there) = (String::new(), String::new());
    for &family in lab.families().list() {
        let length = subnet_length(family);
        let own = node.address(family);
        let gateway = lan(family, 0, 1);
        let addresses = match first {
            First::Public => [own, private(family, 11)],
            First::Private => [private(family, 11), own],
        };
        writeln!(here, "addr del {own}/{length} dev eth0")?;
        for address in addresses {
            writeln!(here, "addr add {address}/{length} dev eth0 nodad")?;
        }
        writeln!(here, "route replace default via {gateway} dev eth0")?;
        writeln!(
            here,
            "route replace {} via {}",
            pod_cidr(family, 2),
            private(family, 12)
        )?;
        writeln!(
            there,
            "addr del {}/{length} dev eth0",
            other.address(family)
        )?;
        // The default route, without which no pod's ARP is answered, leads
        // nowhere.
        writeln!(
            there,
            "addr add {}/{length} dev eth0 nodad\nroute replace default via {}",
            private(family, 12),
            private(family, 1),
        )?;
    }
    node.ip(&here)?;
    other.ip(&there)
}

/// Host `number` in the private subnet, which is on the same wire as the LAN.
/// Of the IPv6 addresses, it has more in common with those of pods.
fn private(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => lan(family, 2, number),
        Family::V6 => pod(family, 0, number),
    }
}

fn assign(node: &Node, vips: Addresses) -> Result<()> {
    let mut batch = String::new();
    for address in vips.list() {
        let length = host_length(Family::of(address));
        writeln!(batch, "addr replace {address}/{length} dev eth0 nodad")?;
    }
    node.ip(&batch)
}

/// Returns the rules that kube-proxy would make for a NodePort of policy Cluster.
fn control(family: Family, endpoint: SocketAddr) -> String {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    format!(
        "table {ip} control {{
           chain prerouting {{
             type nat hook prerouting priority dstnat;
             tcp dport {NODE_PORT} dnat to {endpoint}
           }}
           chain output {{
             type nat hook output priority -100;
             tcp dport {NODE_PORT} dnat to {endpoint}
           }}
           chain postrouting {{
             type nat hook postrouting priority srcnat;
             tcp dport {port} masquerade
           }}
         }}",
        port = endpoint.port(),
    )
}
