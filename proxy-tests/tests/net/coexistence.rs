//! Others live here too: programs on the same devices, and packets that only
//! pass by.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Host, Lab, Node, Service, Topology, Wiring,
    kernel::can_attach,
    traffic::{Server, TcpClient, ask_tcp, ask_udp, ask_udp_patiently},
};
use rstest::rstest;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};

/// Another software's clsact filters on every device, which let everything
/// pass with `TC_ACT_OK`: they go on seeing packets, and Services go on working,
/// whoever came first.
#[rstest]
fn foreign_filters_keep_running(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
    #[values(true, false)] foreign_first: bool,
    #[values("tcx", "clsact")] attach: &str,
) -> Result<()> {
    if !can_attach(attach) {
        return Ok(());
    }
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let devices = [client.node_device(), backend.node_device(), "eth0"];

    let options = AgentOptions::with(&["--attach", attach]);
    if foreign_first {
        add_filters(node, &devices)?;
    }
    let _agents = lab.start_agents(&options)?;
    if !foreign_first {
        add_filters(node, &devices)?;
    }
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for host in [&*client, &lab.external, node] {
            host.run(|| ask_tcp(frontend))
                .with_context(|| host.name().to_owned())?;
            host.run(|| ask_udp(frontend, 64))
                .with_context(|| host.name().to_owned())?;
        }
    }
    for device in devices {
        for direction in ["ingress", "egress"] {
            let seen = packets_seen(node, device, direction)?;
            assert!(seen > 4, "{device} {direction}: {seen} packets");
        }
    }
    Ok(())
}

/// A filter only counts if it has an action. Loopback throws away what is
/// mirrored there, because it is addressed to somebody else; `pass` is
/// `TC_ACT_OK`, and the class ends up in the packet's `tc_index`.
const COUNT: &str = "action mirred egress mirror dev lo pass";

fn add_filters(node: &Node, devices: &[&str]) -> Result<()> {
    let mut batch = String::new();
    for device in devices {
        writeln!(batch, "qdisc replace dev {device} clsact")?;
        for direction in ["ingress", "egress"] {
            let filter = format!("pref 100 protocol all u32 match u32 0 0 classid 1:7 {COUNT}");
            writeln!(batch, "filter add dev {device} {direction} {filter}")?;
        }
    }
    node.feed("tc", &["-batch", "-"], &batch).map(drop)
}

/// Returns the packet counter of the foreign filter.
fn packets_seen(node: &Node, device: &str, direction: &str) -> Result<u64> {
    let arguments = [
        "-s", "-json", "filter", "show", "dev", device, direction, "pref", "100",
    ];
    let filters: serde_json::Value = serde_json::from_str(&node.exec("tc", &arguments)?)?;
    filters
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|filter| filter["options"]["actions"][0]["stats"]["packets"].as_u64())
        .with_context(|| format!("no counter in {filters}"))
}

/// Between the hooks, where routing, netfilter and network policies work, packets
/// bear the addresses of client and backend, both ways: never a Service's, and
/// never one that a client is masqueraded by.
#[rstest]
#[case::routed_veth(Topology::ROUTED)]
#[case::bridge_netfilter(Topology { wiring: Wiring::Bridge, bridge_netfilter: true, ..Topology::ROUTED })]
#[case::flannel(Topology::FLANNEL)]
fn the_middle_sees_pods(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let [client, local] = node.add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
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
        for host in [&*client, &lab.external] {
            for (service, backend) in services.iter().zip(&backends) {
                let frontend = service.at(family, ECHO_PORT);
                node.nft(&middle(host.address(family), backend.address(family)))?;
                host.run(|| -> Result<()> {
                    TcpClient::to(frontend).connect()?.upload(100_000)?;
                    TcpClient::to(frontend).connect()?.download(100_000)?;
                    ask_udp(frontend, 64)?;
                    ask_udp_patiently(frontend, 2000)?;
                    Ok(())
                })?;
                let [there, back, other] = ["there", "back", "other"].map(|name| {
                    let seen = counted(node, name);
                    seen.with_context(|| name.to_owned())
                });
                let context = format!("{family}, {} to {}", host.name(), service.name());
                assert!(there? > 10, "{context}: requests");
                assert!(back? > 10, "{context}: replies");
                assert_eq!(other?, 0, "{context}: others");
            }
        }
    }
    Ok(())
}

/// Counters for forwarded packets from `client` to `backend`, back, and for all
/// others.
fn middle(client: IpAddr, backend: IpAddr) -> String {
    let ip = if client.is_ipv4() { "ip" } else { "ip6" };
    format!(
        "
add table inet middle
delete table inet middle
table inet middle {{
  counter there {{ }}
  counter back {{ }}
  counter other {{ }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    {ip} saddr {client} {ip} daddr {backend} counter name there accept
    {ip} saddr {backend} {ip} daddr {client} counter name back accept
    meta l4proto {{ tcp, udp }} counter name other
  }}
}}
"
    )
}

fn counted(node: &Node, counter: &str) -> Result<u64> {
    let shown = node.exec("nft", &["-j", "list", "counter", "inet", "middle", counter])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    shown["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|item| item["counter"]["packets"].as_u64())
        .with_context(|| format!("no counter in {shown}"))
}

/// A pod that routes Services through a third host on its bridge: the frames
/// are addressed to that host, not to the node, and must arrive as sent.
#[test]
fn frames_for_another_router_are_only_bridged() -> Result<()> {
    let lab = Lab::start(BRIDGE)?;
    let [client, router, backend] = lab.nodes[0].add_pods(["client", "router", "backend"])?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let _own = serve_itself(&lab, &service, &router)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    route_through(&lab, &service, &client, &router)?;
    expect_answers_of(&lab, &service, &client, &router)
}

/// A node whose uplink is promiscuous hears frames between two other hosts of
/// the LAN; what they are about is none of its business.
#[test]
fn frames_for_another_host_are_left_alone() -> Result<()> {
    let mut lab = Lab::start(Topology::default())?;
    let other = lab.add_external("other")?;
    let backend = lab.nodes[0].add_pod("backend")?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let _own = serve_itself(&lab, &service, &other)?;
    lab.nodes[0].ip("link set eth0 promisc on")?;
    // A switch that forgets every address at once is a hub.
    lab.underlay
        .switch()
        .ip("link set lan type bridge ageing_time 0")?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    route_through(&lab, &service, &lab.external, &other)?;
    expect_answers_of(&lab, &service, &lab.external, &other)
}

/// Makes `host` answer at the Service's own addresses and port.
fn serve_itself(lab: &Lab, service: &Service, host: &Host) -> Result<Server> {
    let mut places = Vec::new();
    for &family in lab.families().list() {
        let address = service.cluster_ip(family);
        host.ip(&format!("addr add {address} dev lo nodad"))?;
        places.push(SocketAddr::new(address, ECHO_PORT));
    }
    Server::start_at(host, &places)
}

fn route_through(lab: &Lab, service: &Service, client: &Host, router: &Host) -> Result<()> {
    for &family in lab.families().list() {
        let (address, next) = (service.cluster_ip(family), router.address(family));
        client.ip(&format!("route replace {address} via {next}"))?;
    }
    Ok(())
}

fn expect_answers_of(lab: &Lab, service: &Service, client: &Host, server: &Host) -> Result<()> {
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for answer in [
            client
                .run(|| ask_tcp(frontend))
                .with_context(|| format!("{family} TCP"))?,
            client
                .run(|| ask_udp(frontend, 2000))
                .with_context(|| format!("{family} UDP"))?,
        ] {
            assert_eq!(answer.server, server.name());
            assert_eq!(answer.client.ip(), client.address(family));
            assert_eq!(answer.local, frontend);
        }
    }
    Ok(())
}
