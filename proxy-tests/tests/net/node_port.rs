//! `NodePorts`: who reaches which backends, and whom the backends see (S39,
//! S40, S43, S52, S55, S63–S70).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    Agent, AgentOptions, ECHO_PORT, ECHO_TARGET, Endpoint, Family, Host, Lab, Node, Policy,
    Service, Topology, UnderlayKind, Wiring, eventually,
    traffic::{
        Answer, Server, TcpClient, UdpClient, ask_tcp, ask_udp_patiently, expect_refusal,
        expect_silence, spread_tcp,
    },
};
use rstest::rstest;

const NEAR: u16 = 30_001;
const FAR: u16 = 30_002;
/// From a change to its effect.
const SOON: Duration = Duration::from_secs(2);
/// Bytes of a transfer.
const LARGE: usize = 20 << 20;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};
const FIREWALL: Topology = Topology {
    drop_invalid: true,
    ..Topology::FLANNEL
};
const NARROW: Topology = Topology {
    underlay: UnderlayKind::Routed { mtu: 1400 },
    ..Topology::ROUTED
};

/// The treatment of a client of the first node's `NodePorts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Served, and the backend sees the client's address and port.
    Kept,
    /// Served, and the backend sees an address of this node of the lab.
    As(usize),
    /// Never answered.
    Dropped,
}

/// Two Services, one with a backend on the first node, one with a backend on
/// the second. The first node's `NodePorts` are used by everybody there is.
#[rstest]
fn node_ports_lead_to_backends_here_and_there(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [here, there] = [&lab.nodes[0], &lab.nodes[1]];
    let [client, local] = here.add_pods(["client", "local"])?;
    let [stranger, remote] = there.add_pods(["stranger", "remote"])?;
    let _servers = [
        Server::start(&local, ECHO_TARGET)?,
        Server::start(&remote, ECHO_TARGET)?,
    ];
    for (number, node_port, pod) in [(1, NEAR, &local), (2, FAR, &remote)] {
        let service = service(&lab, pod.name(), number).endpoint(pod);
        let service = service.node_port(ECHO_PORT, node_port);
        lab.manifests.write(&service.external_policy(policy))?;
    }
    let agents = lab.start_agents(&AgentOptions::default())?;

    let far = match policy {
        Policy::Cluster => Fate::As(0),
        Policy::Local => Fate::Dropped,
    };
    // flannel's rules masquerade what the second node's pods send outside, so
    // that the first node sees no pod.
    let [stranger_near, stranger_far] = if topology.masquerade {
        [Fate::As(1), far]
    } else {
        [Fate::Kept, Fate::As(0)]
    };
    let clients: [(&Host, Fate, Fate); 4] = [
        (&lab.external, Fate::Kept, far),
        (there, Fate::Kept, far),
        (&client, Fate::Kept, Fate::Kept),
        // S69: a pod, but not of this node.
        (&stranger, stranger_near, stranger_far),
    ];
    for &family in lab.families().list() {
        for (host, near, far) in clients {
            for (node_port, server, fate) in [(NEAR, "local", near), (FAR, "remote", far)] {
                expect(
                    &lab,
                    &agents[0],
                    host,
                    here.at(family, node_port),
                    server,
                    fate,
                )
                .with_context(|| format!("{} to {server}: {fate:?}", host.name()))?;
            }
        }
    }
    Ok(())
}

/// Connects to `target` over TCP and UDP.
fn expect(
    lab: &Lab,
    agent: &Agent,
    client: &Host,
    target: SocketAddr,
    server: &str,
    fate: Fate,
) -> Result<()> {
    if fate == Fate::Dropped {
        return expect_dropped(agent, client, target);
    }
    let answers = client.run(|| -> Result<_> {
        let mut connection = TcpClient::to(target).connect().context("TCP")?;
        ensure!(connection.peer_addr()? == target);
        connection.start_echo()?;
        connection.echo(b"again")?;
        // Connected, so that only what comes from that address is heard.
        let socket = UdpClient::connect(target)?;
        let answer = socket.ask(b"question").context("UDP")?;
        let again = socket.ask_patiently(&[7; 2000]);
        let again = again.context("UDP in fragments")?;
        ensure!(again == answer, "{again:?} after {answer:?}");
        // Longer than what a tunnel leaves, from the start.
        let long = UdpClient::connect(target)?;
        let long_answer = long.ask_patiently(&[7; 2000]).context("UDP, long")?;
        Ok([
            (connection.local_addr()?, connection.answer),
            (socket.local_addr()?, answer),
            (long.local_addr()?, long_answer),
        ])
    })?;
    for (own, answer) in answers {
        ensure!(answer.server == server, "{answer:?}");
        match fate {
            Fate::As(node) => ensure_of(&lab.nodes[node], &answer)?,
            _ => ensure!(answer.client == own, "{answer:?}, not {own}"),
        }
    }
    Ok(())
}

fn ensure_of(node: &Node, answer: &Answer) -> Result<()> {
    let own = node.device_addresses(Family::of(answer.client.ip()))?;
    ensure!(own.contains(&answer.client.ip()), "{answer:?}");
    Ok(())
}

fn expect_dropped(agent: &Agent, client: &Host, target: SocketAddr) -> Result<()> {
    let before = agent.counted("no_local_endpoint")?;
    client.run(|| expect_silence(target))?;
    let dropped = agent.counted("no_local_endpoint")? - before;
    ensure!(dropped >= 2, "{dropped} packets dropped");
    Ok(())
}

/// Backends with the network of either node, and one that gets its own packets
/// back by way of the first node.
#[rstest]
fn node_ports_lead_to_hosts_and_back(
    #[values(Topology::ROUTED, BRIDGE)] topology: Topology,
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
) -> Result<()> {
    const BACK: u16 = 30_003;
    let lab = Lab::start(topology)?;
    let [here, there] = [&lab.nodes[0], &lab.nodes[1]];
    let [client, stranger] = [here.add_pod("client")?, there.add_pod("stranger")?];
    let _servers = [
        Server::start(here, ECHO_TARGET)?,
        Server::start(there, ECHO_TARGET)?,
        Server::start(&stranger, ECHO_TARGET)?,
    ];
    let endpoints = [
        (NEAR, Endpoint::from(here)),
        (FAR, Endpoint::from(there)),
        (BACK, Endpoint::from(&stranger)),
    ];
    for (number, (node_port, endpoint)) in (1..).zip(endpoints) {
        let service = service(&lab, &format!("service-{number}"), number).endpoint(endpoint);
        let service = service.node_port(ECHO_PORT, node_port);
        lab.manifests.write(&service.external_policy(policy))?;
    }
    let agents = lab.start_agents(&AgentOptions::default())?;

    let far = match policy {
        Policy::Cluster => Fate::As(0),
        Policy::Local => Fate::Dropped,
    };
    let clients: [(&Host, [Fate; 3]); 4] = [
        (&lab.external, [Fate::Kept, far, far]),
        (there, [Fate::Kept, far, far]),
        (&client, [Fate::Kept; 3]),
        (&stranger, [Fate::Kept, Fate::As(0), Fate::As(0)]),
    ];
    let servers = [(NEAR, "node-1"), (FAR, "node-2"), (BACK, "stranger")];
    for &family in lab.families().list() {
        for (host, fates) in clients {
            for ((node_port, server), fate) in servers.into_iter().zip(fates) {
                expect(
                    &lab,
                    &agents[0],
                    host,
                    here.at(family, node_port),
                    server,
                    fate,
                )
                .with_context(|| format!("{} to {server}: {fate:?}", host.name()))?;
            }
        }
    }
    Ok(())
}

/// A client outside, a node in the middle, a backend on another node: large
/// transfers, and datagrams in many pieces.
#[rstest]
fn everything_arrives_by_way_of_a_node_port(
    #[values(Topology::ROUTED, BRIDGE, FIREWALL, NARROW)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let _server = Server::start(&remote, ECHO_TARGET)?;
    let service = service(&lab, "far", 1).endpoint(&remote);
    lab.manifests.write(&service.node_port(ECHO_PORT, FAR))?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let target = lab.nodes[0].at(family, FAR);
        lab.external.run(|| -> Result<()> {
            let connect = || TcpClient::to(target).connect();
            connect()?.upload(LARGE).context("upload")?;
            connect()?.download(LARGE).context("download")?;
            for length in [2000, 8000, 30_000] {
                // The tunnel is narrower than the uplink.
                ask_udp_patiently(target, length).with_context(|| format!("{length} bytes"))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// S55: an address that the node gets takes NodePorts at once, also one that
/// others have to route to the node; S52: unless it is not one of those that
/// were named.
#[rstest]
#[case::all("all", true)]
#[case::named("192.168.77.0/24,fd77::/64", false)]
fn addresses_take_node_ports_when_they_come(
    #[case] node_port_addresses: &str,
    #[case] routed_too: bool,
) -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let backend = node.add_pod("backend")?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = service(&lab, "web", 1).endpoint(&backend);
    lab.manifests.write(&service.node_port(ECHO_PORT, NEAR))?;
    let options = AgentOptions::with(&["--nodeport-addresses", node_port_addresses]);
    let _agents = lab.start_agents(&options)?;

    node.ip(
        "addr add 192.168.77.200/24 dev eth0\naddr add fd77::200/64 dev eth0 nodad\n\
         addr add 198.51.100.7/32 dev lo\naddr add 2001:db8::7/128 dev lo nodad",
    )?;
    for (prefix, family) in [("198.51.100.7", Family::V4), ("2001:db8::7", Family::V6)] {
        let next = node.address(family);
        lab.external.ip(&format!("route add {prefix} via {next}"))?;
    }
    for (address, serves) in [
        ("192.168.77.200", true),
        ("fd77::200", true),
        ("198.51.100.7", routed_too),
        ("2001:db8::7", routed_too),
    ] {
        let address: IpAddr = address.parse()?;
        let target = SocketAddr::new(address, NEAR);
        eventually("the address is known", SOON, || {
            lab.external.run(|| {
                if serves {
                    ask_tcp(target)?;
                    ask_udp_patiently(target, 2000).map(drop)
                } else {
                    expect_refusal(target)
                }
            })
        })
        .context(address)?;
    }
    Ok(())
}

/// S43: without endpoints anywhere a NodePort is refused, whatever its policy.
/// With one here and one elsewhere everybody gets those that the policy allows.
#[rstest]
fn node_ports_without_endpoints_are_refused(
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let _servers = [
        Server::start(&local, ECHO_TARGET)?,
        Server::start(&remote, ECHO_TARGET)?,
    ];
    let empty = service(&lab, "web", 1)
        .node_port(ECHO_PORT, NEAR)
        .external_policy(policy);
    lab.manifests.write(&empty)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let target = lab.nodes[0].at(family, NEAR);
        for host in [&*client, &lab.external] {
            host.run(|| expect_refusal(target))
                .with_context(|| host.name().to_owned())?;
        }
    }
    let full = empty.endpoint(&local).endpoint(&remote);
    lab.manifests.write(&full)?;
    for &family in lab.families().list() {
        let target = lab.nodes[0].at(family, NEAR);
        for (host, all) in [(&*client, true), (&lab.external, policy == Policy::Cluster)] {
            eventually("the endpoints", SOON, || Ok(host.run(|| ask_tcp(target))?))?;
            let servers = host.run(|| spread_tcp(target, 40))?;
            assert!(servers.contains_key("local"), "{servers:?}");
            assert_eq!(servers.contains_key("remote"), all, "{}", host.name());
        }
    }
    Ok(())
}

/// Connections that netfilter or a process of the node opens from a NodePort get their
/// replies back, and are no clients of the NodePort.
#[rstest]
fn connections_from_a_node_port_are_not_its_clients(
    #[values(Topology::ROUTED, Topology::FLANNEL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let node = &lab.nodes[0];
    let [pod, local] = node.add_pods(["pod", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let _servers = [
        Server::start(&local, ECHO_TARGET)?,
        Server::start(&remote, ECHO_TARGET)?,
        Server::start(&lab.external, ECHO_TARGET)?,
        Server::start(&lab.nodes[1], ECHO_TARGET)?,
    ];
    for (number, node_port, pod) in [(1, NEAR, &local), (2, FAR, &remote)] {
        let service = service(&lab, pod.name(), number).endpoint(pod);
        lab.manifests
            .write(&service.node_port(ECHO_PORT, node_port))?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    // Whatever leaves this node for other hosts does so from this one port.
    node.nft(&format!(
        "table inet one_port {{
           chain postrouting {{
             type nat hook postrouting priority srcnat - 1;
             meta l4proto {{ tcp, udp }} th dport {ECHO_TARGET} oifname {{ eth0, \"flannel*\" }} \
               fib saddr type != local masquerade to :{NEAR}
           }}
         }}"
    ))?;

    for &family in lab.families().list() {
        let elsewhere = lab.nodes[1].at(family, ECHO_TARGET);
        let outside = lab.external.at(family, ECHO_TARGET);
        let from = node.at(family, NEAR);
        node.run(|| -> Result<()> {
            let tcp = TcpClient::to(elsewhere).from(from);
            tcp.connect()?.download(LARGE).context("a process, TCP")?;
            let socket = UdpClient::connect_from(from, elsewhere)?;
            socket.ask(b"question").context("a process, UDP")?;
            Ok(())
        })?;
        pod.run(|| -> Result<()> {
            let tcp = TcpClient::to(outside);
            tcp.connect()?.download(LARGE).context("a pod, TCP")?;
            let socket = UdpClient::connect(outside)?;
            let answer = socket.ask(b"question").context("a pod, UDP")?;
            ensure!(answer.client.port() == NEAR, "{answer:?}");
            let again = socket.ask_patiently(&[7; 2000]);
            let again = again.context("a pod, UDP in fragments")?;
            ensure!(again == answer, "{again:?} after {answer:?}");
            Ok(())
        })?;
        // Through one NodePort to a backend elsewhere that answers to another.
        let target = node.at(family, FAR);
        lab.external.run(|| -> Result<()> {
            let connection = TcpClient::to(target).connect().context("a client, TCP")?;
            connection.download(LARGE).context("a client, TCP")?;
            ask_udp_patiently(target, 2000).context("a client, UDP")?;
            Ok(())
        })?;
        // Meanwhile it has clients.
        let answer = lab.external.run(|| ask_tcp(from))?;
        ensure!(answer.server == "local", "{answer:?}");
    }
    Ok(())
}

fn service(lab: &Lab, name: &str, number: u8) -> Service {
    Service::echo_as(name, number, lab.families())
}
