//! The API server comes late, goes, and comes back: the agents wait for it,
//! and the datapath does not notice.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Family, Host, Lab, Topology,
    agent::{self, Agent, Source},
    eventually,
    kubernetes::{ControlPlane, Namespace, Probe, ServiceRanges},
    traffic::{ConnectLoad, Heartbeat},
};

/// The agent's log line when it has lost the API server.
const LOST: &str = "the last state stays in force";
/// And when it has been there again for some seconds.
const FOUND: &str = "watching services again";
/// The pause between two attempts grows to 30 s.
const LIMIT: Duration = Duration::from_secs(45);

#[test]
fn agents_wait_for_the_api_server_and_do_without_it() -> Result<()> {
    let mut lab = Lab::start(Topology::FLANNEL)?;
    let mut control_plane = ControlPlane::prepare(&mut lab, ServiceRanges::V4ThenV6)?;

    // Agents first. They say what they are waiting for, and wait.
    let mut agents = Vec::new();
    for (node, family) in lab.nodes.iter().zip(Family::BOTH) {
        let options = AgentOptions {
            source: Source::Kubeconfig(control_plane.agent_kubeconfig(family)?),
            ..AgentOptions::default()
        };
        agents.push(Agent::start(node, &lab, &options)?);
    }
    lost(&agents, 1)?;

    control_plane.launch()?;
    control_plane.register_nodes(&lab)?;
    let namespace = Namespace::create(&lab, control_plane.kubectl(), "outage")?;
    let clients = [
        namespace.client(0, "client")?,
        namespace.client(1, "client-2")?,
    ];
    let [kept, other] = namespace.backends([(0, "kept"), (1, "other")])?;
    namespace.apply_echo("echo", "ipFamilyPolicy: RequireDualStack")?;
    eventually("agents are ready", LIMIT, || {
        agents.iter().try_for_each(Agent::wait_ready)
    })?;
    let service = namespace.service("echo")?;
    let probes = clients.iter().flat_map(|client| {
        let service = &service;
        Family::BOTH.map(|family| Ok(Probe::new(client, service.at(family, ECHO_PORT)?)))
    });
    let probes = probes.collect::<Result<Vec<_>>>()?;
    for probe in &probes {
        probe.reaches(&[&kept, &other])?;
    }

    // Flows and new connections, in both families, over all that follows.
    let beat = Duration::from_millis(2);
    let (mut beats, mut loads) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        let target = service.at(family, ECHO_PORT)?;
        beats.push(Heartbeat::udp(&clients[0], target, beat)?);
        beats.push(Heartbeat::tcp(&clients[0], target, beat)?);
        loads.push(ConnectLoad::tcp(&clients[1], target));
    }
    eventually("agents say that the outage is over", LIMIT, || {
        for agent in &agents {
            let log = agent.log();
            ensure!(log.matches(FOUND).count() == 1, "{log}");
        }
        Ok(())
    })?;
    let seen = agents
        .iter()
        .map(|agent| agent.log().matches(LOST).count())
        .max()
        .unwrap_or_default();
    control_plane.kill_api_server();
    lost(&agents, seen + 1)?;
    for probe in &probes {
        probe.reaches(&[&kept, &other])?;
    }
    control_plane.start_api_server()?;

    // The agents listen again: a third backend is used.
    let [added] = namespace.backends([(1, "added")])?;
    eventually("the added backend is used", LIMIT, || {
        probes
            .iter()
            .try_for_each(|probe| probe.reaches(&[&kept, &other, &added]))
    })?;
    for beat in beats {
        let report = beat.stop()?;
        ensure!(
            report.lost.is_empty() && report.failure.is_none(),
            "{report:?}"
        );
        ensure!(report.servers.len() == 1, "{report:?}");
    }
    for load in loads {
        let report = load.stop()?;
        ensure!(report.failures.is_empty(), "{report:?}");
        ensure!(report.answered() > 100, "{report:?}");
    }
    Ok(())
}

/// S98: after a reboot nothing is pinned, and the API server is away. Flows that begin on
/// the last known state outlast its end.
#[test]
fn a_rebooted_node_serves_its_last_known_state() -> Result<()> {
    let mut lab = Lab::start(Topology::FLANNEL)?;
    let mut control_plane = ControlPlane::prepare(&mut lab, ServiceRanges::V4ThenV6)?;
    control_plane.launch()?;
    control_plane.register_nodes(&lab)?;
    let options = AgentOptions {
        source: Source::Kubeconfig(control_plane.agent_kubeconfig(Family::V4)?),
        ..AgentOptions::default()
    };
    let node = &lab.nodes[0];
    let agent = Agent::start(node, &lab, &options)?;
    let namespace = Namespace::create(&lab, control_plane.kubectl(), "reboot")?;
    let client = namespace.client(0, "client")?;
    let [here, there] = namespace.backends([(0, "here"), (1, "there")])?;
    let backends: [&Host; 2] = [&here, &there];
    namespace.apply_echo("echo", "ipFamilyPolicy: RequireDualStack")?;
    let service = namespace.service("echo")?;
    let probes = Family::BOTH.map(|family| Ok(Probe::new(&client, service.at(family, ECHO_PORT)?)));
    let probes = probes.into_iter().collect::<Result<Vec<_>>>()?;
    let reaches = || probes.iter().try_for_each(|probe| probe.reaches(&backends));
    agent.wait_ready()?;
    eventually("all is known", LIMIT, reaches)?;
    let state = agent::state_dir(node, &lab).join("state");
    eventually("the state with both backends is kept", LIMIT, || {
        let state = fs::read(&state)?;
        let has = |ip: &[u8]| state.windows(ip.len()).any(|window| window == ip);
        for backend in &backends {
            ensure!(
                has(&backend.addresses().v4.context("an address")?.octets()),
                "not yet"
            );
        }
        Ok(())
    })?;

    control_plane.kill_api_server();
    agent.crash()?;
    agent::command(node, &["cleanup"])?;
    ensure!(
        probes.iter().all(|probe| probe.reaches(&backends).is_err()),
        "nothing is left"
    );
    let start = Instant::now();
    let agent = Agent::start(node, &lab, &options)?;
    eventually("the last known state is served", LIMIT, reaches)?;
    println!("served {:?} after the start", start.elapsed());
    let shown = agent::shown(node, &["get", "services"])?;
    ensure!(shown.contains("last known state"), "{shown}");
    ensure!(
        agent.ask_ready().is_err(),
        "it is ready with what was true before"
    );
    ensure!(
        agent.metrics()?.contains("tandem_state_stale 1"),
        "{}",
        agent.metrics()?
    );

    let beat = Duration::from_millis(2);
    let mut beats = Vec::new();
    for family in Family::BOTH {
        let target = service.at(family, ECHO_PORT)?;
        beats.push(Heartbeat::udp(&client, target, beat)?);
        beats.push(Heartbeat::tcp(&client, target, beat)?);
    }
    control_plane.start_api_server()?;
    eventually("the state is known again", LIMIT, || {
        ensure!(
            agent.metrics()?.contains("tandem_state_stale 0"),
            "{}",
            agent.log()
        );
        Ok(())
    })?;
    reaches()?;
    eventually("it is ready", LIMIT, || agent.ask_ready())?;
    for beat in beats {
        let report = beat.stop()?;
        ensure!(
            report.lost.is_empty() && report.failure.is_none(),
            "{report:?}"
        );
        ensure!(report.servers.len() == 1, "{report:?}");
    }
    let shown = agent::shown(node, &["get", "services"])?;
    ensure!(!shown.contains("last known state"), "{shown}");
    Ok(())
}

/// Waits until every agent has said so this many times.
fn lost(agents: &[Agent<'_>], times: usize) -> Result<()> {
    eventually("agents miss the API server", LIMIT, || {
        for agent in agents {
            let log = agent.log();
            ensure!(log.matches(LOST).count() >= times, "{log}");
        }
        Ok(())
    })
}
