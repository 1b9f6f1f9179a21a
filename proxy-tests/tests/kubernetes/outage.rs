//! The API server comes late, goes, and comes back: the agents wait for it,
//! and the datapath does not notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Family, Lab, Topology,
    agent::{Agent, Source},
    eventually,
    kubernetes::{ControlPlane, Namespace, Probe, ServiceRanges},
    traffic::{ConnectLoad, Heartbeat},
};

/// The agent's log line when it has lost the API server.
const LOST: &str = "the last state stays in force";
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
