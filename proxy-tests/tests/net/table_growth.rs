//! Larger sizes of tables take effect while flows are open.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::dataplane::{maps::Maps as _, pins::Pins};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, Node, Pod, Policy, Service, Sockets,
    Topology,
    addressing::public,
    agent::Agent,
    eventually,
    host::Addresses,
    traffic::{Heartbeat, Server, ask_tcp},
};
use rstest::rstest;
use serde_json::json;

const BEAT: Duration = Duration::from_millis(20);
/// Conversations of each client: with another backend at hand, some would move if their
/// flows were lost.
const MANY: usize = 8;
const HEALTH_PORT: u16 = 32_100;

/// Agents with tables of 1024, 4096 and again 1024 flows follow each other, in order and
/// by a crash: no flow loses a packet or its backend, and tables only grow.
#[rstest]
fn flow_tables_grow_under_open_flows(#[values(true, false)] crash: bool) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let scene = Scene::set(&lab)?;
    let options = |flow_table_size| AgentOptions {
        flow_table_size,
        sockets: Sockets::Off,
        ..AgentOptions::default()
    };
    let mut agent = Agent::start(node, &lab, &options(1024))?;
    agent.wait_ready()?;
    let beats = scene.open_flows(&lab)?;
    for (asked, expected) in [(4096, 4096), (1024, 4096)] {
        if crash {
            agent.crash()?;
        } else {
            agent.terminate()?;
        }
        agent = Agent::start(node, &lab, &options(asked))?;
        agent.wait_ready()?;
        assert_sizes(node, expected)?;
    }
    assert_unharmed(beats)
}

/// The tables of an agent are too small for its Services, those of the next one are large
/// enough, and so they stay with a third one that asks for less: no flow loses a packet or
/// its backend meanwhile, and all Services are served.
#[rstest]
fn service_tables_grow_under_open_flows(
    #[values(true, false)] crash: bool,
    #[values(Sockets::Off, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let scene = Scene::set(&lab)?;
    let options = |max_service_ports, max_endpoints| AgentOptions {
        max_service_ports,
        max_endpoints,
        sockets,
        ..AgentOptions::default()
    };
    let mut agent = Agent::start(node, &lab, &options(8, 16))?;
    agent.wait_ready()?;
    let beats = scene.open_flows(&lab)?;
    let others: Vec<_> = (10..30)
        .map(|number| {
            Service::echo_as(&format!("other-{number}"), number, lab.families())
                .endpoint(&scene.kept)
        })
        .collect();
    for other in &others {
        lab.manifests.write(other)?;
    }
    eventually("full tables", Duration::from_secs(10), || {
        let log = agent.log();
        ensure!(log.contains("table SERVICES is full"), "{log}");
        ensure!(log.contains("larger --max-service-ports"), "{log}");
        Ok(())
    })?;
    for (ports, endpoints) in [(64, 128), (8, 16)] {
        if crash {
            agent.crash()?;
        } else {
            agent.terminate()?;
        }
        agent = Agent::start(node, &lab, &options(ports, endpoints))?;
        agent.wait_ready()?;
        for other in &others {
            scene.ask_everywhere(&lab, other)?;
        }
        ensure!(!agent.log().contains("is full"), "{}", agent.log());
        assert_nothing_aside(node)?;
    }
    assert_unharmed(beats)
}

/// Ten times as many Services appear at once as an agent's tables were made for: it makes
/// larger ones while it runs, once. No flow loses a packet or its backend, all Services
/// are served, and whoever asks for its health is answered all the time.
#[rstest]
fn service_tables_grow_while_the_agent_runs(
    #[values(Sockets::Off, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let scene = Scene::set(&lab)?;
    let checked = Service::echo_as("checked", 2, lab.families())
        .load_balancer(
            Addresses::choose(lab.families(), |family| public(family, 2)),
            "VIP",
        )
        .external_policy(Policy::Local)
        .with("/spec/healthCheckNodePort", json!(HEALTH_PORT))
        .endpoint(&scene.kept);
    lab.manifests.write(&checked)?;
    let options = AgentOptions {
        max_service_ports: 8,
        max_endpoints: 16,
        tables_may_grow: true,
        sockets,
        ..AgentOptions::default()
    };
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    let beats = scene.open_flows(&lab)?;
    eventually("health check port", Duration::from_secs(5), || {
        ask_health(node)
    })?;
    let others: Vec<_> = (10..50)
        .map(|number| {
            Service::echo_as(&format!("other-{number}"), number, lab.families())
                .endpoint(&scene.kept)
        })
        .collect();
    let objects: Vec<_> = others.iter().flat_map(Service::objects).collect();
    let grown = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !grown.load(Ordering::Relaxed) {
                agent.ask_ready().context("ready?")?;
                ask_health(node).context("health check port")?;
            }
            anyhow::Ok(())
        });
        let served = lab
            .manifests
            .write_objects("others", &objects)
            .and_then(|()| {
                eventually("all are served", Duration::from_mins(1), || {
                    for other in &others {
                        scene.ask_everywhere(&lab, other)?;
                    }
                    Ok(())
                })
            });
        grown.store(true, Ordering::Relaxed);
        served.and(asking.join().expect("no panic"))
    })?;
    let log = agent.log();
    assert_eq!(log.matches("tables grow").count(), 1, "{log}");
    assert_eq!(log.matches("first sync done").count(), 2, "{log}");
    ensure!(!log.contains("is full"), "{log}");
    assert_nothing_aside(node)?;
    assert_unharmed(beats)?;
    // The next one keeps them.
    agent.terminate()?;
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    let log = agent.log();
    ensure!(!log.contains("keep the size"), "{log}");
    others
        .iter()
        .try_for_each(|other| scene.ask_everywhere(&lab, other))
}

/// Asks the health check port for anything.
fn ask_health(node: &Node) -> Result<()> {
    node.run(|| {
        let server = (Ipv4Addr::LOCALHOST, HEALTH_PORT).into();
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: lb\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.contains("localEndpoints"), "{answer}");
        Ok(())
    })
}

/// A Service with a backend to which flows are opened, and another one at hand after
/// that.
struct Scene {
    client: Pod,
    kept: Pod,
    added: Pod,
    service: Service,
    _servers: [Server; 2],
}

impl Scene {
    fn set(lab: &Lab) -> Result<Self> {
        let client = lab.nodes[0].add_pod("client")?;
        let [kept, added] = lab.nodes[1].add_pods(["kept", "added"])?;
        let servers = [
            Server::start(&kept, ECHO_TARGET)?,
            Server::start(&added, ECHO_TARGET)?,
        ];
        let service = Service::echo(lab.families()).endpoint(&kept);
        lab.manifests.write(&service)?;
        Ok(Self {
            client,
            kept,
            added,
            service,
            _servers: servers,
        })
    }

    /// A pod and the node's own processes reach a Service with the kept backend.
    fn ask_everywhere(&self, lab: &Lab, service: &Service) -> Result<()> {
        for &family in lab.families().list() {
            let frontend = service.at(family, ECHO_PORT);
            for host in [&*self.client, &*lab.nodes[0]] {
                let answer = host.run(|| ask_tcp(frontend));
                let context = || format!("{} to {frontend}", host.name());
                ensure!(answer.with_context(context)?.server == "kept");
            }
        }
        Ok(())
    }

    fn open_flows(&self, lab: &Lab) -> Result<Vec<Heartbeat>> {
        let (client, node) = (&self.client, &lab.nodes[0]);
        let mut beats = Vec::new();
        for &family in lab.families().list() {
            let frontend = self.service.at(family, ECHO_PORT);
            for _ in 0..MANY {
                // Those of the node's own processes are masqueraded.
                beats.push(Heartbeat::udp(client, frontend, BEAT)?);
                beats.push(Heartbeat::udp(node, frontend, BEAT)?);
            }
            beats.push(Heartbeat::tcp(client, frontend, BEAT)?);
            beats.push(Heartbeat::tcp(node, frontend, BEAT)?);
        }
        lab.manifests
            .write(&self.service.clone().endpoint(&self.added))?;
        for &family in lab.families().list() {
            let frontend = self.service.at(family, ECHO_PORT);
            eventually("the added endpoint is used", Duration::from_secs(5), || {
                let answer = client.run(|| ask_tcp(frontend))?;
                ensure!(answer.server == "added", "only the kept one");
                Ok(())
            })?;
        }
        Ok(beats)
    }
}

/// No flow lost anything, and all still have the backend that they had first.
fn assert_unharmed(beats: Vec<Heartbeat>) -> Result<()> {
    for beat in beats {
        let report = beat.stop()?;
        assert_eq!(report.servers.iter().collect::<Vec<_>>(), ["kept"]);
        assert!(
            report.lost.is_empty() && report.failure.is_none(),
            "{report:?}"
        );
        assert!(report.sent > 20, "{report:?}");
    }
    Ok(())
}

/// The tables that follow `--flow-table-size` have room for `flows`, and the smaller
/// ones are gone.
fn assert_sizes(node: &Node, flows: u32) -> Result<()> {
    let pins = Pins::new(node.pins().path());
    for family in Family::BOTH {
        let suffix = match family {
            Family::V4 => "V4",
            Family::V6 => "V6",
        };
        for (table, size) in [("FLOWS", flows), ("MASQ", flows), ("AFFINITY", flows / 4)] {
            let info = pins.open(&format!("{table}_{suffix}"))?.info()?;
            assert_eq!(info.max_entries(), size, "{table}_{suffix}");
        }
    }
    assert_nothing_aside(node)
}

/// No table is left that a larger one has taken the place of.
fn assert_nothing_aside(node: &Node) -> Result<()> {
    let left: Vec<_> = node.pins().pins()?;
    let former = |pin: &&std::path::PathBuf| pin.to_string_lossy().ends_with("-former");
    ensure!(!left.iter().any(|pin| former(&pin)), "{left:?}");
    Ok(())
}
