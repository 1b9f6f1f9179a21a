//! A node with two network cards, pods with routing rules of their own, and a
//! network that takes no packet from a card that its source is not reached by.

mod scene;

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, PodNetwork, Policy, Service, Topology,
    addressing::{lan, public, subnet_length},
    agent, eventually,
    host::Addresses,
    traffic::{PATIENCE, Server, TcpClient, UdpClient, ask_tcp, ask_udp},
};
use rstest::rstest;

use self::scene::{NODE_PORT, SECOND, Scene, ip, vip};

/// TCP both ways, and UDP in one piece and in several.
fn exchange(frontend: SocketAddr) -> Result<()> {
    let tcp = TcpClient::to(frontend);
    tcp.connect()?.upload(300_000).context("upload")?;
    tcp.connect()?.download(300_000).context("download")?;
    let socket = UdpClient::connect(frontend)?;
    for length in [1, 1400, 4000] {
        let answer = socket.ask(&vec![7; length]);
        answer.with_context(|| format!("UDP, {length} bytes"))?;
    }
    Ok(())
}

/// Replies leave by the card that the request came in by, whatever the backend's
/// rules say: to clients on the LAN and behind a router, at a NodePort of either
/// card and at a load balancer's address, also where the endpoint is on another
/// node and its replies only pass by.
#[rstest]
fn replies_leave_by_the_card_of_the_request(
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
    #[values("local", "remote")] backend: &str,
) -> Result<()> {
    if (policy, backend) == (Policy::Local, "remote") {
        return Ok(());
    }
    let scene = Scene::set()?;
    scene.rule_by_second_card()?;
    let pods = [&scene.local, &scene.remote];
    let backend = pods.into_iter().find(|pod| pod.name() == backend);
    scene.serve(backend.context("a pod")?, policy)?;
    let agents = scene.lab.start_agents(&AgentOptions::default())?;
    for &family in scene.families() {
        for client in scene.clients() {
            let first = scene.node().at(family, NODE_PORT);
            let second = SocketAddr::new(lan(family, SECOND, 11), NODE_PORT);
            for frontend in [first, vip(family), second] {
                client
                    .run(|| exchange(frontend))
                    .with_context(|| format!("{} to {frontend}", client.name()))?;
            }
        }
    }
    ensure!(agents[0].counted("reply_redirected")? > 0, "uncounted");
    Ok(())
}

/// Refusals by backends leave by that card, too: a reset, and an ICMP error of a port
/// that nobody listens at.
#[test]
fn refusals_of_backends_leave_by_the_card_of_the_request() -> Result<()> {
    let scene = Scene::set()?;
    scene.rule_by_second_card()?;
    let closed = Service::new("closed", 2, scene.lab.families())
        .tcp(ECHO_PORT, ECHO_TARGET + 1)
        .udp(ECHO_PORT, ECHO_TARGET + 1)
        .node_port(ECHO_PORT, NODE_PORT)
        .endpoint(&scene.local);
    scene.lab.manifests.write(&closed)?;
    let _agents = scene.lab.start_agents(&AgentOptions::default())?;
    for &family in scene.families() {
        let frontend = scene.node().at(family, NODE_PORT);
        for client in scene.clients() {
            let tcp = client.run(|| ask_tcp(frontend)).expect_err("closed");
            let udp = client.run(|| ask_udp(frontend, 64)).expect_err("closed");
            for error in [tcp, udp] {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{frontend}");
            }
        }
    }
    Ok(())
}

/// The same by netfilter, with the connection marks of network plugins.
#[test]
fn connection_marks_do_the_same_for_netfilter() -> Result<()> {
    let scene = Scene::set()?;
    scene.rule_by_second_card()?;
    let node = scene.node();
    let backend = |family| SocketAddr::new(scene.local.address(family), ECHO_TARGET);
    node.nft(&format!(
        "
table inet control {{
  chain nat {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local meta nfproto ipv4 tcp dport {NODE_PORT} dnat ip to {}
    fib daddr type local meta nfproto ipv6 tcp dport {NODE_PORT} dnat ip6 to {}
  }}
  chain marks {{
    type filter hook prerouting priority mangle; policy accept;
    iifname eth0 fib daddr type local ct mark set 0x80
    iifname {} meta mark set ct mark
  }}
}}
",
        backend(Family::V4),
        backend(Family::V6),
        scene.local.node_device(),
    ))?;
    let ask = || {
        for &family in scene.families() {
            for client in scene.clients() {
                let tcp =
                    TcpClient::to(node.at(family, NODE_PORT)).within(Duration::from_millis(500));
                client.run(|| tcp.connect()).context("a connection")?;
            }
        }
        anyhow::Ok(())
    };
    ensure!(ask().is_err(), "the network does not mind");
    for &family in scene.families() {
        ip(node, family, "rule add fwmark 0x80 lookup main prio 1024")?;
    }
    ask()
}

/// Replies are not redirected if routing leads them back by itself; nor are those
/// to the node's own pods and processes, which have no uplink.
#[rstest]
fn nothing_changes_where_routing_agrees(#[values(false, true)] rules: bool) -> Result<()> {
    let scene = Scene::set()?;
    let client = scene.node().add_pod("client")?;
    scene.serve(&scene.local, Policy::Cluster)?;
    if rules {
        scene.rule_by_second_card()?;
        // As network plugins have it, before the rules of pods.
        for &family in scene.families() {
            let address = client.address(family);
            let rule = format!("rule add to {address} lookup main prio 512");
            ip(scene.node(), family, &rule)?;
        }
    }
    let agents = scene.lab.start_agents(&AgentOptions::default())?;
    let outside: &[_] = if rules { &[] } else { &scene.clients() };
    for &family in scene.families() {
        let cluster_ip = Service::echo(scene.lab.families()).at(family, ECHO_PORT);
        let node_port = scene.node().at(family, NODE_PORT);
        for frontend in [node_port, vip(family), cluster_ip] {
            for host in [&*client, &**scene.node()] {
                host.run(|| exchange(frontend))
                    .with_context(|| format!("{} to {frontend}", host.name()))?;
            }
        }
        for host in outside {
            for frontend in [node_port, vip(family)] {
                host.run(|| exchange(frontend))?;
            }
        }
    }
    assert_eq!(agents[0].counted("reply_redirected")?, 0);
    Ok(())
}

/// A card that packets only come in by, as from a load balancer whose servers answer
/// directly, gets no replies to send: no route leads to clients by it.
#[test]
fn replies_do_not_leave_by_a_card_that_leads_nowhere() -> Result<()> {
    let scene = Scene::set()?;
    scene
        .lab
        .underlay
        .switch()
        .nft("delete table inet strict")?;
    scene.move_vip()?;
    // The card leads away, but not to clients.
    for &family in scene.families() {
        let (other, length) = (lan(family, 90, 0), subnet_length(family));
        let route = format!("route add {other}/{length} via {}", lan(family, SECOND, 1));
        ip(scene.node(), family, &route)?;
    }
    scene.serve(&scene.local, Policy::Local)?;
    let agents = scene.lab.start_agents(&AgentOptions::default())?;
    for &family in scene.families() {
        scene.beyond.run(|| exchange(vip(family)))?;
    }
    let devices = agent::command(scene.node(), &["get", "devices"])?;
    let is_uplink = |line: &str| line.starts_with("eth1 ") && line.contains("uplink");
    ensure!(devices.lines().any(is_uplink), "{devices}");
    assert_eq!(agents[0].counted("reply_redirected")?, 0);
    Ok(())
}

/// The fate of the card that a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// It stays; the router takes the other one.
    None,
    Down,
    NoCarrier,
}

/// A connection whose packets come in by another card from now on is answered by
/// that one, whatever became of the first.
#[rstest]
fn replies_follow_the_client_to_another_card(
    #[values(Loss::None, Loss::Down, Loss::NoCarrier)] loss: Loss,
) -> Result<()> {
    let scene = Scene::set()?;
    // Away from where the client moves to, too.
    let by_first = |family| format!("via {} dev eth0", lan(family, 0, 1));
    let by_second = |family| format!("via {} dev eth1", lan(family, SECOND, 1));
    scene.rule(&[&scene.local], |family| match loss {
        Loss::None => by_first(family),
        Loss::Down | Loss::NoCarrier => by_second(family),
    })?;
    if loss == Loss::None {
        // As good a way to clients as the one by the first card.
        for &family in scene.families() {
            let route = format!("route append default {}", by_second(family));
            ip(scene.node(), family, &route)?;
        }
    }
    scene.serve(&scene.local, Policy::Local)?;
    let _agents = scene.lab.start_agents(&AgentOptions::default())?;
    let (mut connections, mut sockets) = (Vec::new(), Vec::new());
    for &family in scene.families() {
        let mut connection = scene.beyond.run(|| TcpClient::to(vip(family)).connect())?;
        connection.start_echo()?;
        connection.echo(b"before")?;
        connections.push(connection);
        let socket = scene.beyond.run(|| UdpClient::connect(vip(family)))?;
        socket.ask(b"before")?;
        sockets.push(socket);
    }
    lose(&scene, loss)?;
    scene.move_vip()?;
    for connection in &mut connections {
        connection.echo(b"after")?;
    }
    for socket in &sockets {
        socket.ask_patiently(b"after")?;
    }
    for &family in scene.families() {
        scene.beyond.run(|| ask_tcp(vip(family)))?;
        scene.beyond.run(|| ask_udp(vip(family), 64))?;
    }
    Ok(())
}

fn lose(scene: &Scene, loss: Loss) -> Result<()> {
    match loss {
        Loss::None => Ok(()),
        Loss::Down => scene.node().ip("link set eth0 down"),
        Loss::NoCarrier => {
            let port = proxy_tests::underlay::port_of(scene.node());
            let switch = scene.lab.underlay.switch();
            switch.ip(&format!("link set {port} down"))
        }
    }
}

/// A packet that a backend sends by itself does not wait for the client to move: if the
/// card is lost that the client's packets came in by, routing decides.
#[rstest]
fn a_lost_card_is_not_insisted_on(#[values(Loss::Down, Loss::NoCarrier)] loss: Loss) -> Result<()> {
    let scene = Scene::set()?;
    scene.rule_by_second_card()?;
    scene.serve(&scene.local, Policy::Local)?;
    let places = scene.families().iter().map(|&family| {
        // Beside the server, which answers questions only.
        let own = SocketAddr::new(scene.local.address(family), ECHO_TARGET + 1);
        scene.local.run(|| UdpSocket::bind(own))
    });
    let servers = places.collect::<std::io::Result<Vec<_>>>()?;
    let pushing = Service::new("pushing", 2, scene.lab.families())
        .udp(ECHO_PORT, ECHO_TARGET + 1)
        .load_balancer(
            Addresses::choose(scene.lab.families(), |family| public(family, 2)),
            "VIP",
        )
        .endpoint(&scene.local);
    scene.lab.manifests.write(&pushing)?;
    let _agents = scene.lab.start_agents(&AgentOptions::default())?;
    let mut pairs = Vec::new();
    for (&family, server) in scene.families().iter().zip(servers) {
        let client = scene.beyond.run(|| {
            let client = UdpSocket::bind(SocketAddr::new(scene.beyond.address(family), 0))?;
            client.set_read_timeout(Some(Duration::from_millis(50)))?;
            client.connect(SocketAddr::new(public(family, 2), ECHO_PORT))?;
            std::io::Result::Ok(client)
        })?;
        client.send(b"question")?;
        server.set_read_timeout(Some(PATIENCE))?;
        let (_, peer) = server.recv_from(&mut [0; 64])?;
        let push = move || {
            server.send_to(b"news", peer)?;
            client.recv(&mut [0; 64]).context("no news")
        };
        eventually("news", PATIENCE, &push)?;
        pairs.push(push);
    }
    lose(&scene, loss)?;
    scene.move_vip()?;
    for push in pairs {
        eventually("news by the other card", PATIENCE, &push)?;
    }
    Ok(())
}

/// Devices without Ethernet header: a client behind one, and backends whose rules
/// lead to one.
#[rstest]
fn replies_leave_by_devices_without_ethernet_header(
    #[values(true, false)] client_is_behind: bool,
) -> Result<()> {
    let scene = Scene::set()?;
    let guest = (scene.lab).add_tunnel_host(scene.node(), "guest", |family| lan(family, 100, 1))?;
    scene.serve(&scene.local, Policy::Local)?;
    // Linux takes nothing from other devices than routing names, not even loosely,
    // that have no address.
    let filters = ["all", "tun-guest"].map(|device| format!("net/ipv4/conf/{device}/rp_filter"));
    let clients: &[&Host] = if client_is_behind {
        for filter in &filters {
            scene.node().sysctl(filter, "0")?;
        }
        scene.rule_by_second_card()?;
        &[&guest]
    } else {
        scene.rule(&[&scene.local], |_| "dev tun-guest".to_owned())?;
        &scene.clients()
    };
    let _agents = scene.lab.start_agents(&AgentOptions::default())?;
    for &family in scene.families() {
        for client in clients {
            for frontend in [scene.node().at(family, NODE_PORT), vip(family)] {
                client
                    .run(|| exchange(frontend))
                    .with_context(|| format!("{} to {frontend}", client.name()))?;
            }
        }
    }
    Ok(())
}

/// The backend hears that its packets are too big for the card that they leave by,
/// which routing did not compare them with.
#[test]
fn backends_hear_of_a_narrower_card() -> Result<()> {
    let scene = Scene::set()?;
    scene.rule_by_second_card()?;
    scene.serve(&scene.local, Policy::Local)?;
    let port = proxy_tests::underlay::port_of(scene.node());
    let switch = scene.lab.underlay.switch();
    switch.ip(&format!("link set {port} mtu 1400"))?;
    scene.node().ip("link set eth0 mtu 1400")?;
    let _agents = scene.lab.start_agents(&AgentOptions::default())?;
    for &family in scene.families() {
        for frontend in [scene.node().at(family, NODE_PORT), vip(family)] {
            scene
                .beyond
                .run(|| TcpClient::to(frontend).connect()?.download(300_000))
                .with_context(|| format!("download from {frontend}"))?;
        }
        let client = scene.beyond.address(family).to_string();
        let known = scene.local.exec("ip", &["route", "get", &client])?;
        ensure!(known.contains("mtu 1400"), "{known}");
    }
    Ok(())
}

/// A pod of another node, whose packets to a `NodePort` come in by the LAN while the way
/// to it is a tunnel: replies take the tunnel, and not the default route by the LAN.
#[test]
fn replies_take_a_longer_route_by_another_device() -> Result<()> {
    let lab = Lab::start(Topology {
        pod_network: PodNetwork::Vxlan,
        ..Topology::ROUTED
    })?;
    let [here, there] = [&lab.nodes[0], &lab.nodes[1]];
    for &family in lab.families().list() {
        let router = lab.external.address(family);
        ip(
            here,
            family,
            &format!("route replace default via {router}\n"),
        )?;
    }
    // Requests come in beside the tunnel, and replies by it with an address of the LAN.
    for node in [here, there] {
        node.sysctl("net/ipv4/conf/all/rp_filter", "2")?;
    }
    let backend = here.add_pod("backend")?;
    let client = there.add_pod("client")?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families())
        .node_port(ECHO_PORT, NODE_PORT)
        .endpoint(&backend);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        let frontend = SocketAddr::new(here.address(family), NODE_PORT);
        let answer = client
            .run(|| ask_tcp(frontend))
            .with_context(|| format!("{family} TCP"))?;
        ensure!(answer.client.ip() == client.address(family), "{answer:?}");
        client
            .run(|| ask_udp(frontend, 64))
            .with_context(|| format!("{family} UDP"))?;
    }
    Ok(())
}
