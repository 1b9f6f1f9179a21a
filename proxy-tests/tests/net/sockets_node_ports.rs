//! External frontends and the socket LB: what the host reaches, also on
//! its loopback, what pods reach, and what is the packet path's.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, PodNetwork, Service, Sockets,
    Topology, Wiring, agent,
    traffic::{Server, TcpClient, UdpClient, Way, ask_tcp, ask_udp},
};
use rstest::rstest;
use serde_json::json;

const TWO_NODES: Topology = Topology {
    nodes: 2,
    wiring: Wiring::RoutedVeth,
    pod_network: PodNetwork::Routes,
    ..Topology::ONE_NODE
};
const NODE_PORT: u16 = 30_080;
/// With two backends, one is missed this many times in a row once in 10^6.
const ENOUGH: usize = 20;

fn with_node_port(service: Service) -> Service {
    service
        .with("/spec/type", json!("NodePort"))
        .with("/spec/ports/0/nodePort", json!(NODE_PORT))
        .with("/spec/ports/1/nodePort", json!(NODE_PORT))
}

fn loopback(family: Family) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    (ip, NODE_PORT).into()
}

/// Returns the servers that answer, over all ways together.
fn servers(host: &Host, target: SocketAddr, attempts: usize) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for way in ways(target) {
        all.extend(servers_by(way, host, target, attempts)?);
    }
    Ok(all)
}

fn ways(target: SocketAddr) -> impl Iterator<Item = Way> {
    let family = Family::of(target.ip());
    Way::ALL.into_iter().filter(move |way| way.fits(family))
}

fn servers_by(
    way: Way,
    host: &Host,
    target: SocketAddr,
    attempts: usize,
) -> Result<BTreeSet<String>> {
    let ask = || -> Result<String> {
        let answer = host.run(|| way.ask(target));
        let (answer, _) = answer.with_context(|| format!("{} {target} {way:?}", host.name()))?;
        Ok(answer.server)
    };
    (0..attempts).map(|_| ask()).collect()
}

/// NodePorts at the loopback are the host's own, in both families and TCP and
/// UDP (E18): a pod that connects to its own loopback reaches itself or nobody.
#[rstest]
fn loopback_node_ports_are_the_hosts(
    #[values(Sockets::Off, Sockets::Host, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(TWO_NODES)?;
    let node = &lab.nodes[0];
    let [client, local] = node.add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends = [local, remote];
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let service = with_node_port(Service::echo(lab.families())).endpoints(&backends);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(sockets))?;

    let both: BTreeSet<_> = ["local", "remote"].map(str::to_owned).into();
    for family in Family::BOTH {
        assert_eq!(servers(node, loopback(family), ENOUGH)?, both, "{family}");
        let refused = client.run(|| TcpClient::to(loopback(family)).connect());
        let refused = refused.err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{family}");
        let own = Server::start_at(&client, &[loopback(family)])?;
        let found = servers(&client, loopback(family), 2)?;
        assert_eq!(found, BTreeSet::from(["client".to_owned()]), "{family}");
        drop(own);
    }
    assert_eq!(agent::flows_opened(node)?, 0);
    Ok(())
}

/// A NodePort at the node's own address, an external IP and a load balancer's
/// address: host and pods reach every backend, whatever the external policy
/// says (S39, S40), by whichever path.
#[rstest]
fn external_frontends_answer_alike(
    #[values(Sockets::Off, Sockets::Host, Sockets::All)] sockets: Sockets,
    #[values("Cluster", "Local")] policy: &str,
) -> Result<()> {
    let lab = Lab::start(TWO_NODES)?;
    let node = &lab.nodes[0];
    let client = node.add_pod("client")?;
    let backends = lab.nodes[1].add_pods(["a", "b"])?;
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let external: [IpAddr; 2] = [[203, 0, 113, 10].into(), "2001:db8::10".parse()?];
    let balancer: [IpAddr; 2] = [[203, 0, 113, 20].into(), "2001:db8::20".parse()?];
    let service = with_node_port(Service::echo(lab.families()))
        .with("/spec/type", json!("LoadBalancer"))
        .with("/spec/externalTrafficPolicy", json!(policy))
        .with("/spec/externalIPs", json!(external))
        .with(
            "/status/loadBalancer/ingress",
            json!(balancer.map(|ip| json!({ "ip": ip }))),
        )
        .endpoints(&backends);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(sockets))?;

    let both: BTreeSet<_> = ["a", "b"].map(str::to_owned).into();
    // Pods' external connections depend on their address under policy Local.
    let clients: [(&Host, bool); 2] = [
        (node, sockets != Sockets::Off),
        (&client, sockets == Sockets::All && policy == "Cluster"),
    ];
    for (host, by_socket) in clients {
        let before = agent::flows_opened(node)?;
        for (family, index) in [(Family::V4, 0), (Family::V6, 1)] {
            for target in [
                node.at(family, NODE_PORT),
                (external[index], ECHO_PORT).into(),
                (balancer[index], ECHO_PORT).into(),
            ] {
                assert_eq!(servers(host, target, ENOUGH / 2)?, both, "{target}");
            }
        }
        let recorded = agent::flows_opened(node)? > before;
        assert_eq!(recorded, !by_socket, "{}: flows recorded", host.name());
    }
    Ok(())
}

/// Session affinity holds on the loopback, where no packet could be led; at
/// other frontends it is the packet path's, which knows the client.
#[test]
fn affinity_holds() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let client = node.add_pod("client")?;
    let backends = node.add_pods(["a", "b", "c", "d"])?;
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let service = with_node_port(Service::echo(lab.families()))
        .with("/spec/sessionAffinity", json!("ClientIP"))
        .with(
            "/spec/sessionAffinityConfig",
            json!({ "clientIP": { "timeoutSeconds": 60 } }),
        )
        .endpoints(&backends);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for family in Family::BOTH {
        for udp in [false, true] {
            let sticks = |host: &Host, target: SocketAddr| -> Result<()> {
                let mut found = BTreeSet::new();
                for _ in 0..ENOUGH {
                    let server = host.run(|| -> Result<String> {
                        Ok(if udp {
                            UdpClient::connect(target)?.ask(b"question")?.server
                        } else {
                            TcpClient::to(target).connect()?.answer.server
                        })
                    });
                    let context = || format!("{} to {target}, UDP: {udp}", host.name());
                    found.insert(server.with_context(context)?);
                }
                assert_eq!(found.len(), 1, "{} {target}: {found:?}", host.name());
                Ok(())
            };
            let before = agent::flows_opened(node)?;
            sticks(node, loopback(family))?;
            assert_eq!(agent::flows_opened(node)?, before);
            for host in [&**node, &client] {
                let before = agent::flows_opened(node)?;
                sticks(host, service.at(family, ECHO_PORT))?;
                assert!(agent::flows_opened(node)? > before, "{}", host.name());
            }
        }
    }
    Ok(())
}

/// Source ranges and `--masquerade-all` need packets, and get them from pods
/// whose calls are translated otherwise.
#[test]
fn what_needs_the_clients_address_goes_by_packets() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, other, backend] = node.add_pods(["client", "other", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let balancer: [IpAddr; 2] = [[203, 0, 113, 20].into(), "2001:db8::20".parse()?];
    let ranges = client.addresses().list();
    let ranges = ranges.iter().map(|ip| match ip {
        IpAddr::V4(ip) => format!("{ip}/32"),
        IpAddr::V6(ip) => format!("{ip}/128"),
    });
    let service = Service::echo(lab.families())
        .with("/spec/type", json!("LoadBalancer"))
        .with(
            "/spec/loadBalancerSourceRanges",
            json!(ranges.collect::<Vec<_>>()),
        )
        .with(
            "/status/loadBalancer/ingress",
            json!(balancer.map(|ip| json!({ "ip": ip }))),
        )
        .endpoint(&backend);
    lab.manifests.write(&service)?;
    let options = AgentOptions {
        arguments: vec!["--masquerade-all".to_owned()],
        ..AgentOptions::with_sockets(Sockets::All)
    };
    let _agents = lab.start_agents(&options)?;

    for (family, index) in [(Family::V4, 0), (Family::V6, 1)] {
        let target: SocketAddr = (balancer[index], ECHO_PORT).into();
        client.run(|| ask_tcp(target))?;
        client.run(|| ask_udp(target, 64))?;
        let denied = TcpClient::to(target).within(Duration::from_millis(300));
        assert!(other.run(|| denied.connect()).is_err(), "{target}");

        let answer = other.run(|| ask_tcp(service.at(family, ECHO_PORT)))?;
        assert_ne!(answer.client.ip(), other.address(family));
    }
    Ok(())
}

/// A Service whose load balancer's address is the node's own.
fn at_own_address(lab: &Lab, node: &Host, name: &str, number: u16) -> Service {
    let ingress = node.addresses().list();
    let ingress = ingress.iter().map(|ip| json!({ "ip": ip }));
    Service::echo_as(name, number.try_into().expect("small"), lab.families())
        .with("/spec/type", json!("LoadBalancer"))
        .with("/spec/ports/0/port", json!(8000 + number))
        .with("/spec/ports/1/port", json!(8000 + number))
        .with("/spec/ports/0/nodePort", json!(NODE_PORT + number))
        .with("/spec/ports/1/nodePort", json!(NODE_PORT + number))
        .with(
            "/status/loadBalancer/ingress",
            json!(ingress.collect::<Vec<_>>()),
        )
}

/// The node's own processes and frontends at its own addresses, as load
/// balancers report them that run on the nodes: the client's address is the one
/// that the client used, so that affinity and source ranges hold.
#[rstest]
fn own_addresses_know_their_client(
    #[values(Sockets::Off, Sockets::Host, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let backends = node.add_pods(["a", "b", "c", "d"])?;
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let own = node.addresses().list();
    let own: Vec<_> = own.iter().map(|&ip| single(ip)).collect();
    let service = |name, number| at_own_address(&lab, node, name, number).endpoints(&backends);
    let ranges = "/spec/loadBalancerSourceRanges";
    lab.manifests
        .write(&service("sticky", 1).with("/spec/sessionAffinity", json!("ClientIP")))?;
    lab.manifests
        .write(&service("admitted", 2).with(ranges, json!(own)))?;
    let others = json!(["203.0.113.0/24", "2001:db8:9::/64"]);
    lab.manifests
        .write(&service("denied", 3).with(ranges, others))?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(sockets))?;

    for family in Family::BOTH {
        let at = |port: u16| node.at(family, port);
        for target in [at(8001), at(NODE_PORT + 1)] {
            for way in ways(target) {
                let servers = servers_by(way, node, target, ENOUGH)?;
                assert_eq!(servers.len(), 1, "{target} {way:?}: {servers:?}");
            }
        }
        for target in [at(8002), at(NODE_PORT + 2), at(NODE_PORT + 3)] {
            assert!(servers(node, target, ENOUGH)?.len() > 1, "{target}");
        }
        let tcp = |port| TcpClient::to(at(port)).within(Duration::from_millis(300));
        let bound = SocketAddr::new(loopback(family).ip(), 0);
        for denied in [tcp(8003), tcp(8002).from(bound)] {
            let refused = node.run(|| denied.connect()).expect_err("denied");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{denied:?}");
        }
    }
    Ok(())
}

fn single(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}
