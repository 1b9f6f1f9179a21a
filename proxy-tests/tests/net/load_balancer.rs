//! Load balancers' addresses and external IPs, which no device has: who reaches
//! which backends, who may, and what happens when policies change (S7–S9, S39,
//! S40, S43, S46, S57, S58, S60, S62–S70).

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    Agent, AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Pod, Policy, Service,
    Topology, Wiring,
    addressing::{host_length, public},
    eventually,
    host::Addresses,
    traffic::{
        Answer, OpenFlows, Server, TcpClient, UdpClient, ask_tcp, expect_refusal, expect_silence,
        spread_tcp, spread_udp,
    },
    underlay::route_public,
};
use rstest::rstest;

/// From a change to its effect.
const SOON: Duration = Duration::from_secs(2);
/// Time that a client waits that may not be served yet.
const BRIEFLY: Duration = Duration::from_millis(300);
/// With two backends, one is missed this many times in a row once in 10^12.
const ENOUGH: usize = 40;
const NODE_PORT: u16 = 30_001;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// A client and a backend on the first node, a backend on the second. Outside,
/// public addresses are routed to the first node.
struct Scene {
    client: Pod,
    local: Pod,
    remote: Pod,
    _servers: [Server; 2],
}

impl Scene {
    fn set(lab: &Lab) -> Result<Self> {
        let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
        let remote = lab.nodes[1].add_pod("remote")?;
        let servers = [
            Server::start(&local, ECHO_TARGET)?,
            Server::start(&remote, ECHO_TARGET)?,
        ];
        route_public(&lab.external, &lab.nodes[0])?;
        Ok(Self {
            client,
            local,
            remote,
            _servers: servers,
        })
    }
}

fn addresses(lab: &Lab, number: u8) -> Addresses {
    Addresses::choose(lab.families(), |family| public(family, number))
}

fn at(family: Family, number: u8) -> SocketAddr {
    SocketAddr::new(public(family, number), ECHO_PORT)
}

/// A Service without endpoints; its load balancer has the public address
/// `number`, its external IP is a hundred higher.
fn service(lab: &Lab, name: &str, number: u8) -> Service {
    Service::echo_as(name, number, lab.families())
        .load_balancer(addresses(lab, number), "VIP")
        .external_ips(addresses(lab, 100 + number))
}

/// Each Service has one backend, here or on the other node. A pod, a process of
/// the node, a pod of the other node and a client outside connect to both of its
/// addresses.
#[rstest]
fn public_addresses_lead_to_backends_here_and_there(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
) -> Result<()> {
    const NEAR: u8 = 1;
    const FAR: u8 = 2;
    let lab = Lab::start(topology)?;
    let [here, there] = [&lab.nodes[0], &lab.nodes[1]];
    let scene = Scene::set(&lab)?;
    let stranger = there.add_pod("stranger")?;
    for (number, pod) in [(NEAR, &scene.local), (FAR, &scene.remote)] {
        let service = service(&lab, pod.name(), number).endpoint(pod);
        lab.manifests.write(&service.external_policy(policy))?;
    }
    let agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for (number, backend) in [(NEAR, &scene.local), (FAR, &scene.remote)] {
            for target in [at(family, number), at(family, 100 + number)] {
                // S40: pods and processes of a node have the endpoints of all.
                for pod in [&scene.client, &stranger] {
                    let answers = ask_both(pod, target).with_context(|| pod.name().to_owned())?;
                    for answer in answers {
                        assert_eq!(answer.server, backend.name());
                        assert_eq!(answer.client.ip(), pod.address(family));
                    }
                }
                for node in [here, there] {
                    let answers = ask_both(node, target).with_context(|| node.name().to_owned())?;
                    for answer in answers {
                        ensure_of(node, backend, &answer)?;
                    }
                }
                if number == FAR && policy == Policy::Local {
                    expect_dropped(&agents[0], "no_local_endpoint", &lab.external, target)?;
                    continue;
                }
                for answer in ask_both(&lab.external, target).context("outside")? {
                    if number == NEAR {
                        assert_eq!(answer.client.ip(), lab.external.address(family));
                        assert_eq!(answer.server, backend.name());
                    } else {
                        ensure_of(here, backend, &answer)?;
                    }
                }
            }
            // S46: a load balancer's address has no other ports.
            let unknown = SocketAddr::new(public(family, number), 81);
            for host in [&*scene.client, &lab.external] {
                host.run(|| expect_refusal(unknown))?;
            }
        }
    }
    Ok(())
}

/// `backend` has answered, and seen an address of `node`.
fn ensure_of(node: &Node, backend: &Pod, answer: &Answer) -> Result<()> {
    let own = node.device_addresses(Family::of(answer.client.ip()))?;
    ensure!(answer.server == backend.name(), "{answer:?}");
    ensure!(own.contains(&answer.client.ip()), "{answer:?}");
    Ok(())
}

/// Asks over TCP and UDP, the latter in fragments; returns both answers.
fn ask_both(client: &Host, target: SocketAddr) -> Result<[Answer; 2]> {
    client.run(|| {
        let over_tcp = ask_tcp(target).with_context(|| format!("TCP {target}"))?;
        let socket = UdpClient::connect(target)?;
        let over_udp = socket.ask_patiently(&[7; 2000]);
        Ok([over_tcp, over_udp.with_context(|| format!("UDP {target}"))?])
    })
}

fn expect_dropped(agent: &Agent, event: &str, client: &Host, target: SocketAddr) -> Result<()> {
    let before = agent.counted(event)?;
    client.run(|| expect_silence(target))?;
    let dropped = agent.counted(event)? - before;
    ensure!(dropped >= 2, "{event}: {dropped}");
    Ok(())
}

/// S57, S58: ranges say who may use a load balancer, pods and processes of the
/// node among them; whoever uses another frontend of the Service may do so.
/// They count for new flows only.
#[test]
fn source_ranges_are_for_everybody() -> Result<()> {
    const NUMBER: u8 = 1;
    let mut lab = Lab::start(Topology::ROUTED)?;
    let other = lab.add_external("other")?;
    let scene = Scene::set(&lab)?;
    route_public(&other, &lab.nodes[0])?;
    let host_range = |host: &Host| -> Vec<String> {
        let ranges = lab
            .families()
            .list()
            .iter()
            .map(|&family| format!("{}/{}", host.address(family), host_length(family)));
        ranges.collect()
    };
    let service = service(&lab, "web", NUMBER)
        .node_port(ECHO_PORT, NODE_PORT)
        .load_balancer(addresses(&lab, NUMBER), "VIP")
        .endpoints([&scene.local, &scene.remote]);
    let clients: [&Host; 4] = [&lab.external, &other, &scene.client, &lab.nodes[0]];
    let mut ranges = host_range(clients[0]);
    lab.manifests
        .write(&service.clone().source_ranges(&ranges))?;
    let agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let target = at(family, NUMBER);
        ask_both(clients[0], target)?;
        for denied in &clients[1..] {
            expect_dropped(&agents[0], "source_range_denied", denied, target)
                .with_context(|| denied.name().to_owned())?;
            ask_both(denied, at(family, 100 + NUMBER)).context("external IP")?;
            ask_both(denied, service.at(family, ECHO_PORT)).context("cluster IP")?;
        }
        for client in [clients[1], clients[2]] {
            ask_both(client, lab.nodes[0].at(family, NODE_PORT)).context("NodePort")?;
        }
    }

    // The range goes to another client; TCP that is open stays open, and UDP
    // ends.
    let mut open = Vec::new();
    for &family in lab.families().list() {
        open.push(OpenFlows::start(clients[0], at(family, NUMBER))?);
    }
    ranges = host_range(clients[2]);
    lab.manifests
        .write(&service.clone().source_ranges(&ranges))?;
    for &family in lab.families().list() {
        let target = at(family, NUMBER);
        eventually("the pod may", SOON, || {
            Ok(clients[2].run(|| TcpClient::to(target).within(BRIEFLY).connect())?)
        })?;
        ask_both(clients[2], target)?;
        expect_dropped(&agents[0], "source_range_denied", clients[0], target)?;
    }
    for flows in &mut open {
        flows.tcp()?;
        flows.udp_ends()?;
    }

    // Without ranges everybody may.
    lab.manifests.write(&service)?;
    for &family in lab.families().list() {
        for client in clients {
            eventually("everybody may", SOON, || {
                Ok(client.run(|| TcpClient::to(at(family, NUMBER)).within(BRIEFLY).connect())?)
            })?;
        }
    }
    Ok(())
}

/// S8: an address with `ipMode: Proxy` belongs to the load balancer, which is
/// asked itself; with `VIP` the node answers for it.
#[test]
fn ip_mode_proxy_is_left_alone() -> Result<()> {
    const NUMBER: u8 = 1;
    let mut lab = Lab::start(Topology::ROUTED)?;
    let balancer = lab.add_external("balancer")?;
    let scene = Scene::set(&lab)?;
    let mut places = Vec::new();
    for &family in lab.families().list() {
        let address = public(family, NUMBER);
        let length = host_length(family);
        balancer.ip(&format!("addr add {address}/{length} dev lo nodad"))?;
        // Its way back.
        let pods = proxy_tests::addressing::pod_cidr(family, 1);
        let node = lab.nodes[0].address(family);
        balancer.ip(&format!("route add {pods} via {node}"))?;
        places.push(SocketAddr::new(address, ECHO_PORT));
    }
    let _balancing = Server::start_at(&balancer, &places)?;
    for node in &lab.nodes {
        route_public(node, &balancer)?;
    }
    let service = service(&lab, "web", NUMBER)
        .load_balancer(addresses(&lab, NUMBER), "Proxy")
        .endpoint(&scene.local);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let expect = |server: &str| -> Result<()> {
        for &family in lab.families().list() {
            for client in [&*scene.client, &*lab.nodes[0]] {
                for answer in ask_both(client, at(family, NUMBER))? {
                    ensure!(answer.server == server, "{}: {answer:?}", client.name());
                }
            }
        }
        Ok(())
    };
    expect("balancer")?;
    let service = service.load_balancer(addresses(&lab, NUMBER), "VIP");
    lab.manifests.write(&service)?;
    eventually("VIP", SOON, || expect("local"))?;
    let service = service.load_balancer(addresses(&lab, NUMBER), "Proxy");
    lab.manifests.write(&service)?;
    eventually("Proxy again", SOON, || expect("balancer"))
}

/// S38, S62: Cluster, Local, Cluster. New flows follow at once, none fails, and
/// open ones stay where they are.
#[rstest]
fn policies_change_under_traffic(
    #[values(Topology::ROUTED, Topology::FLANNEL)] topology: Topology,
) -> Result<()> {
    const NUMBER: u8 = 1;
    let lab = Lab::start(topology)?;
    let scene = Scene::set(&lab)?;
    let service = service(&lab, "web", NUMBER).endpoints([&scene.local, &scene.remote]);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let outside = &lab.external;

    let mut open = Vec::new();
    for &family in lab.families().list() {
        // Enough that both backends have some.
        for _ in 0..10 {
            open.push(OpenFlows::start(outside, at(family, NUMBER))?);
        }
    }
    for policy in [Policy::Local, Policy::Cluster] {
        lab.manifests
            .write(&service.clone().external_policy(policy))?;
        for &family in lab.families().list() {
            for target in [at(family, NUMBER), at(family, 100 + NUMBER)] {
                eventually("the policy", SOON, || {
                    for servers in [
                        outside.run(|| spread_tcp(target, ENOUGH))?,
                        outside.run(|| spread_udp(target, ENOUGH))?,
                    ] {
                        ensure!(servers.contains_key("local"), "{servers:?}");
                        let both = policy == Policy::Cluster;
                        ensure!(servers.contains_key("remote") == both, "{servers:?}");
                    }
                    Ok(())
                })?;
            }
        }
        for flows in &mut open {
            flows.stay().with_context(|| format!("{policy:?}"))?;
        }
    }
    Ok(())
}

/// S43: without endpoints anywhere, everybody is refused; with one again,
/// everybody is served.
#[rstest]
fn public_addresses_without_endpoints_are_refused(
    #[values(Policy::Cluster, Policy::Local)] policy: Policy,
) -> Result<()> {
    const NUMBER: u8 = 1;
    let lab = Lab::start(Topology::ROUTED)?;
    let scene = Scene::set(&lab)?;
    let empty = service(&lab, "web", NUMBER).external_policy(policy);
    lab.manifests.write(&empty)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let clients: [&Host; 3] = [&scene.client, &lab.nodes[0], &lab.external];
    for &family in lab.families().list() {
        for client in clients {
            client.run(|| expect_refusal(at(family, NUMBER)))?;
            client.run(|| expect_refusal(at(family, 100 + NUMBER)))?;
        }
    }
    lab.manifests.write(&empty.endpoint(&scene.local))?;
    for &family in lab.families().list() {
        for client in clients {
            eventually("an endpoint", SOON, || {
                ask_both(client, at(family, NUMBER))?;
                ask_both(client, at(family, 100 + NUMBER))
            })?;
        }
    }
    Ok(())
}
