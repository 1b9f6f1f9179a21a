//! Session affinity: a client comes back to the endpoint it had (S71–S76).

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Pod, Service, Topology, eventually,
    traffic::{Answer, Server, ask_tcp, ask_udp_patiently, spread_tcp, spread_udp},
};
use rstest::rstest;

/// From a change to its effect.
const SOON: Duration = Duration::from_secs(2);
const NODE_PORT: u16 = 30_001;
/// With three backends, one answers this many times in a row by chance once in
/// 10^14.
const ENOUGH: usize = 30;
/// No test lasts that long.
const LONG: u32 = 10_800;

/// Asks over TCP, or over UDP until there is an answer.
type Ask = fn(SocketAddr) -> Result<Answer>;
const PROTOCOLS: [(&str, Ask); 2] = [
    ("TCP", |target| Ok(ask_tcp(target)?)),
    ("UDP", |target| ask_udp_patiently(target, 64)),
];

/// Two backends on the first node, one on the second, and a client.
struct Scene {
    client: Pod,
    backends: [Pod; 3],
    _servers: Vec<Server>,
    service: Service,
}

impl Scene {
    fn set(lab: &Lab) -> Result<Self> {
        let [client, a, b] = lab.nodes[0].add_pods(["client", "a", "b"])?;
        let backends = [a, b, lab.nodes[1].add_pod("c")?];
        let servers = Server::start_all(&backends, ECHO_TARGET)?;
        let service = Service::echo(lab.families())
            .endpoints(&backends)
            .node_port(ECHO_PORT, NODE_PORT);
        Ok(Self {
            client,
            backends,
            _servers: servers,
            service,
        })
    }

    /// A pod that uses the cluster IP, a pod that uses the NodePort, and a
    /// client outside that does.
    fn destinations<'a>(&'a self, lab: &'a Lab, family: Family) -> [(&'a Host, SocketAddr); 3] {
        let node_port = lab.nodes[0].at(family, NODE_PORT);
        [
            (&self.client, self.service.at(family, ECHO_PORT)),
            (&self.client, node_port),
            (&lab.external, node_port),
        ]
    }
}

/// All connections of `client` get to one endpoint, whose name is returned.
fn pinned(client: &Host, target: SocketAddr, ask: Ask) -> Result<String> {
    client.run(|| {
        let server = ask(target)?.server;
        for _ in 0..ENOUGH {
            let next = ask(target)?.server;
            ensure!(next == server, "{next} after {server}");
        }
        Ok(server)
    })
}

/// S75: switched on and off, new connections notice at once.
#[rstest]
fn affinity_is_switched_on_and_off(
    #[values(Topology::ROUTED, Topology::FLANNEL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let scene = Scene::set(&lab)?;
    lab.manifests.write(&scene.service)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for turn in 0..2 {
        let with_affinity = scene.service.clone().client_ip_affinity(LONG);
        lab.manifests.write(&with_affinity)?;
        for &family in lab.families().list() {
            for (protocol, ask) in PROTOCOLS {
                let mut servers = Vec::new();
                for (client, target) in scene.destinations(&lab, family) {
                    let context = || format!("{turn}: {} to {target} {protocol}", client.name());
                    let server = eventually("affinity", SOON, || pinned(client, target, ask));
                    servers.push(server.with_context(context)?);
                }
                // S71: one client, two frontends of a port, one endpoint.
                ensure!(servers[0] == servers[1], "{protocol}: {servers:?}");
            }
        }
        lab.manifests.write(&scene.service)?;
        for &family in lab.families().list() {
            for (client, target) in scene.destinations(&lab, family) {
                eventually("all endpoints", SOON, || {
                    for servers in [
                        client.run(|| spread_tcp(target, ENOUGH))?,
                        client.run(|| spread_udp(target, ENOUGH))?,
                    ] {
                        ensure!(servers.len() == scene.backends.len(), "{servers:?}");
                    }
                    Ok(())
                })
                .with_context(|| format!("{turn}: {} to {target}", client.name()))?;
            }
        }
    }
    Ok(())
}

/// S72: each new connection starts the time anew; some seconds after it is over,
/// the client is forgotten.
#[test]
fn affinity_ends_after_its_time() -> Result<()> {
    const SECONDS: u32 = 2;
    let lab = Lab::start(Topology::ROUTED)?;
    let scene = Scene::set(&lab)?;
    let with_affinity = scene.service.clone().client_ip_affinity(SECONDS);
    lab.manifests.write(&with_affinity)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    // Everybody has affinities of their own, so they may wait together.
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for &family in lab.families().list() {
            let [cluster_ip, _, node_port] = scene.destinations(&lab, family);
            for (client, target) in [cluster_ip, node_port] {
                for (protocol, ask) in PROTOCOLS {
                    clients.push(scope.spawn(move || {
                        let timeout = Duration::from_secs(SECONDS.into());
                        let ask = || Ok(client.run(|| ask(target))?.server);
                        kept(timeout, ask)
                            .and_then(|()| forgotten(timeout, ask))
                            .with_context(|| format!("{} to {target} {protocol}", client.name()))
                    }));
                }
            }
        }
        clients
            .into_iter()
            .try_for_each(|client| match client.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })
}

/// Connects now and then for longer than the timeout.
fn kept(timeout: Duration, ask: impl Fn() -> Result<String>) -> Result<()> {
    let (start, mut last) = (Instant::now(), Instant::now());
    let server = ask()?;
    while start.elapsed() < 2 * timeout {
        thread::sleep(timeout / 8);
        let next = ask()?;
        // Unless this thread had to wait too long for its turn.
        let in_time = last.elapsed() < timeout / 2;
        ensure!(next == server || !in_time, "{next} after {server}");
        last = Instant::now();
    }
    Ok(())
}

/// Each pause gives another endpoint two chances of three.
fn forgotten(timeout: Duration, ask: impl Fn() -> Result<String>) -> Result<()> {
    const LATE: Duration = Duration::from_secs(3);
    const TRIES: u32 = 20;
    let attempt = || {
        let before = ask()?;
        thread::sleep(timeout + LATE);
        let after = ask()?;
        ensure!(after != before, "still {before}");
        Ok(())
    };
    eventually("another endpoint", TRIES * (timeout + LATE), attempt)
}

/// S74: an endpoint that goes takes its clients' pins with it; they get another
/// one, and keep that when the first comes back.
#[test]
fn affinity_outlives_no_endpoint() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let scene = Scene::set(&lab)?;
    let with_affinity = scene.service.clone().client_ip_affinity(LONG);
    // It has the same endpoints, and tells anybody which those are.
    let witness = Service::echo_as("witness", 2, lab.families());
    let write = |endpoints: &[&Pod]| {
        let services = [&with_affinity, &witness].map(|service| {
            let changed = service.clone().without_endpoints();
            changed.endpoints(endpoints.iter().copied()).objects()
        });
        lab.manifests.write_objects("both", &services.concat())
    };
    let all: Vec<_> = scene.backends.iter().collect();
    write(&all)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let witness = witness.at(family, ECHO_PORT);
        for (client, target) in scene.destinations(&lab, family) {
            for (protocol, ask) in PROTOCOLS {
                let context = || format!("{} to {target} {protocol}", client.name());
                let gone = pinned(client, target, ask).with_context(context)?;
                let left = all.iter().copied().filter(|pod| pod.name() != gone);
                write(&left.collect::<Vec<_>>())?;
                let heir = eventually("another endpoint", SOON, || {
                    let server = pinned(client, target, ask)?;
                    ensure!(server != gone, "still {gone}");
                    Ok(server)
                })
                .with_context(context)?;
                write(&all)?;
                eventually("the endpoint is back", SOON, || {
                    let server = scene.client.run(|| ask(witness))?.server;
                    ensure!(server == gone, "{server} answers");
                    Ok(())
                })
                .with_context(context)?;
                let server = pinned(client, target, ask).with_context(context)?;
                ensure!(server == heir, "{server}, not {heir}");
            }
        }
    }
    Ok(())
}
