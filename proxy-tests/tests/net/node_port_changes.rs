//! Endpoints of a NodePort come, drain and go under traffic (S32, S33, S77–S79).

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Endpoint, Family, Host, Lab, Pod, Policy, Service,
    Topology, Wiring, eventually,
    traffic::{OpenFlows, Server, expect_refusal, expect_silence, spread_tcp, spread_udp},
};
use rstest::rstest;

/// From a change to its effect.
const SOON: Duration = Duration::from_secs(2);
const NODE_PORT: u16 = 30_001;
/// With two backends, one is missed this many times in a row once in 10^12.
const ENOUGH: usize = 40;

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ROUTED
};

/// `a` on the first node, `b` on the second, both behind the first's NodePort.
struct Scene {
    client: Pod,
    backends: [Pod; 2],
    _servers: Vec<Server>,
    service: Service,
}

impl Scene {
    fn set(lab: &Lab) -> Result<Self> {
        let [client, a] = lab.nodes[0].add_pods(["client", "a"])?;
        let backends = [a, lab.nodes[1].add_pod("b")?];
        let servers = Server::start_all(&backends, ECHO_TARGET)?;
        let service = Service::echo(lab.families()).node_port(ECHO_PORT, NODE_PORT);
        Ok(Self {
            client,
            backends,
            _servers: servers,
            service,
        })
    }
}

/// Flows from `client` that are both with `server`.
fn flows_with(client: &Host, target: SocketAddr, server: &str) -> Result<OpenFlows> {
    eventually("flows", SOON, || {
        let flows = OpenFlows::start(client, target)?;
        let both = [&flows.over_tcp, &flows.over_udp];
        ensure!(both == [server, server], "with {both:?}");
        Ok(flows)
    })
}

/// S77, S78: a UDP socket whose backend is gone is with another one at once, or
/// refused if there is none. S79: a TCP connection lives on.
#[rstest]
fn udp_leaves_and_tcp_stays(
    #[values(Topology::ROUTED, BRIDGE, Topology::FLANNEL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let scene = Scene::set(&lab)?;
    let all = scene.service.clone().endpoints(&scene.backends);
    lab.manifests.write(&all)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let target = lab.nodes[0].at(family, NODE_PORT);
        for client in [&lab.external, &*scene.client] {
            for (gone, left) in [(0, 1), (1, 0)] {
                let [gone, left] = [gone, left].map(|index: usize| &scene.backends[index]);
                let mut flows = flows_with(client, target, gone.name())?;
                lab.manifests.write(&scene.service.clone().endpoint(left))?;
                eventually("UDP moves", SOON, || {
                    let server = flows.udp()?;
                    ensure!(server == left.name(), "{server} answers");
                    Ok(())
                })?;
                flows.tcp()?;

                lab.manifests.write(&scene.service)?;
                eventually("refusal", SOON, || client.run(|| expect_refusal(target)))?;
                ensure!(flows.udp().is_err(), "answered by nobody");
                flows.tcp()?;

                lab.manifests.write(&all)?;
                eventually("UDP goes on", SOON, || flows.udp())?;
                flows.tcp()?;
            }
        }
    }
    Ok(())
}

/// Checks which backends answer, over either protocol.
fn expect_servers(client: &Host, target: SocketAddr, expected: &[&str]) -> Result<()> {
    eventually("these answer", SOON, || {
        for servers in [
            client.run(|| spread_tcp(target, ENOUGH))?,
            client.run(|| spread_udp(target, ENOUGH))?,
        ] {
            let servers: BTreeSet<_> = servers.keys().map(String::as_str).collect();
            ensure!(servers.iter().eq(expected), "{servers:?}, not {expected:?}");
        }
        Ok(())
    })
    .with_context(|| format!("{} to {target}", client.name()))
}

const A: &[&str] = &["a"];
const B: &[&str] = &["b"];
const BOTH: &[&str] = &["a", "b"];

/// S32, S33: an endpoint that terminates gets nothing new while others are
/// ready, of those that its policy has; and keeps the flows it has.
#[rstest]
#[case::cluster(Policy::Cluster, [B, BOTH])]
#[case::local(Policy::Local, [A, A])]
fn terminating_endpoints_drain(
    #[case] policy: Policy,
    #[case] outside: [&[&str]; 2],
    #[values(Topology::ROUTED, Topology::FLANNEL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let scene = Scene::set(&lab)?;
    let service = scene.service.clone().external_policy(policy);
    let [a, b] = [0, 1].map(|index: usize| Endpoint::from(&scene.backends[index]));
    let ready = service.clone().endpoints([a.clone(), b.clone()]);
    lab.manifests.write(&ready)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let at = |family: Family| lab.nodes[0].at(family, NODE_PORT);
    let mut open = Vec::new();
    for &family in lab.families().list() {
        for client in [&lab.external, &*scene.client] {
            open.push(flows_with(client, at(family), "a")?);
        }
    }
    let draining = [
        [a.clone().draining(), b.clone()],
        [a.draining(), b.clone().draining()],
    ];
    // Pods have the endpoints of all nodes in any case (S40).
    for ((endpoints, outside), inside) in draining.into_iter().zip(outside).zip([B, BOTH]) {
        lab.manifests.write(&service.clone().endpoints(endpoints))?;
        for &family in lab.families().list() {
            expect_servers(&lab.external, at(family), outside)?;
            expect_servers(&scene.client, at(family), inside)?;
        }
        for flows in &mut open {
            flows.stay()?;
        }
    }

    lab.manifests.write(&service.endpoint(b))?;
    for &family in lab.families().list() {
        expect_servers(&scene.client, at(family), B)?;
        match policy {
            Policy::Cluster => expect_servers(&lab.external, at(family), B)?,
            Policy::Local => lab.external.run(|| expect_silence(at(family)))?,
        }
    }
    for flows in &mut open {
        flows.tcp()?;
    }
    Ok(())
}
