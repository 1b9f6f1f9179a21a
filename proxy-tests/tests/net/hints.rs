//! Topology hints: which endpoints clients get by zone and node (S34, S35, S42).

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Endpoint, Host, Lab, Pod, Policy, Service, Topology,
    eventually,
    traffic::{Server, spread_tcp, spread_udp},
};

/// From a change to its effect.
const SOON: Duration = Duration::from_secs(2);
const NODE_PORT: u16 = 30_001;
/// With two backends, one is missed this many times in a row once in 10^12.
const ENOUGH: usize = 40;

/// A client and a backend on each node; the second node is in the zone `west`,
/// the first in none.
struct Scene {
    clients: [Pod; 2],
    backends: [Pod; 2],
    _servers: Vec<Server>,
    service: Service,
}

impl Scene {
    fn set(lab: &Lab) -> Result<Self> {
        let [client, here] = lab.nodes[0].add_pods(["client", "here"])?;
        let [other, there] = lab.nodes[1].add_pods(["other", "there"])?;
        let backends = [here, there];
        let servers = Server::start_all(&backends, ECHO_TARGET)?;
        lab.manifests.write_node_in_zone(&lab.nodes[1], "west")?;
        let service = Service::echo(lab.families()).node_port(ECHO_PORT, NODE_PORT);
        lab.manifests.write(&service)?;
        Ok(Self {
            clients: [client, other],
            backends,
            _servers: servers,
            service,
        })
    }

    /// Writes `service` with these endpoints.
    fn write(&self, lab: &Lab, endpoints: [Endpoint; 2]) -> Result<()> {
        lab.manifests
            .write(&self.service.clone().endpoints(endpoints))
    }

    fn endpoints(&self) -> [Endpoint; 2] {
        [0, 1].map(|index: usize| Endpoint::from(&self.backends[index]))
    }

    /// Checks which backends answer the clients at the cluster IP: that of the first node
    /// and that of the second. A client outside that uses the first node's NodePort gets
    /// the same as the first.
    fn expect(&self, lab: &Lab, expected: [&[&str]; 2]) -> Result<()> {
        for &family in lab.families().list() {
            let cluster_ip = self.service.at(family, ECHO_PORT);
            let node_port = lab.nodes[0].at(family, NODE_PORT);
            let [client, other]: [&Host; 2] = [&self.clients[0], &self.clients[1]];
            for (client, target, expected) in [
                (client, cluster_ip, expected[0]),
                (other, cluster_ip, expected[1]),
                (&lab.external, node_port, expected[0]),
            ] {
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
                .with_context(|| format!("{} to {target}", client.name()))?;
            }
        }
        Ok(())
    }
}

const HERE: &[&str] = &["here"];
const THERE: &[&str] = &["there"];
const BOTH: &[&str] = &["here", "there"];

/// Endpoints that are all meant for zones are used by their zones; a node's zone
/// may be told, change, and be one that no endpoint is meant for.
#[test]
fn zones_have_their_endpoints() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let scene = Scene::set(&lab)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let [here, there] = scene.endpoints();
    let zoned = [
        here.clone().for_zone("east"),
        there.clone().for_zone("west"),
    ];
    scene.write(&lab, zoned.clone())?;
    // Nobody knows where the first node is.
    scene.expect(&lab, [BOTH, THERE])?;
    for (zone, servers) in [("east", HERE), ("west", THERE), ("north", BOTH)] {
        lab.manifests.write_node_in_zone(&lab.nodes[0], zone)?;
        scene.expect(&lab, [servers, THERE]).context(zone)?;
    }

    // One without hint, and all are for everybody; unless it is not ready.
    lab.manifests.write_node_in_zone(&lab.nodes[0], "west")?;
    let [_, west] = zoned;
    scene.write(&lab, [here.clone(), west.clone()])?;
    scene.expect(&lab, [BOTH, BOTH])?;
    scene.write(&lab, [here.draining(), west])?;
    scene.expect(&lab, [THERE, THERE])
}

/// Hints for nodes come before those for zones, and a Local policy before both.
#[test]
fn nodes_have_their_endpoints() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let mut scene = Scene::set(&lab)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    lab.manifests.write_node_in_zone(&lab.nodes[0], "west")?;
    let [here, there] = scene.endpoints();
    // Not where they are: hints count.
    let crossed = [
        here.for_zone("west").for_node("node-2"),
        there.for_zone("west").for_node("node-1"),
    ];
    scene.write(&lab, crossed.clone())?;
    scene.expect(&lab, [THERE, HERE])?;
    let [a, mut b] = crossed.clone();
    b.for_nodes.clear();
    scene.write(&lab, [a, b])?;
    scene.expect(&lab, [BOTH, BOTH])?;

    scene.service = scene
        .service
        .internal_policy(Policy::Local)
        .external_policy(Policy::Local);
    scene.write(&lab, crossed)?;
    scene.expect(&lab, [HERE, THERE])
}
