//! An agent takes the pinned programs of its own build as they are, and no others.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use proxy_agent::dataplane::pins::Pins;
use proxy_tests::{
    Agent, AgentOptions, ECHO_PORT, Lab, Node, Pod, Served, Sockets, Topology,
    traffic::{Heartbeat, ask_tcp, ask_udp},
};
use rstest::rstest;

const MILLISECOND: Duration = Duration::from_millis(1);

/// The ids of the pinned programs, by name.
fn programs(node: &Node) -> Result<BTreeMap<String, u32>> {
    let folder = Pins::new(node.pins().path()).programs();
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy();
        programs.insert(name.into_owned(), ProgramInfo::from_pin(&path)?.id());
    }
    Ok(programs)
}

/// What a restart did with the programs.
#[derive(Debug, PartialEq, Eq)]
enum Programs {
    /// All of them are those of the agent before.
    Taken,
    /// None is.
    Loaded,
}

/// Starts an agent, ends it, does `between`, and starts another one with `options`. No packet
/// is lost, and new connections work.
fn restart(
    before: &AgentOptions,
    after: &AgentOptions,
    between: impl FnOnce(&Node) -> Result<()>,
) -> Result<Programs> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, server] = node.add_pods(["client", "server"])?;
    let service = lab.serve([&server])?;
    let agent = Agent::start(node, &lab, before)?;
    agent.wait_ready()?;
    let first = programs(node)?;
    let mut beats = Vec::new();
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        beats.push(Heartbeat::udp(&client, frontend, MILLISECOND)?);
        beats.push(Heartbeat::tcp(&client, frontend, MILLISECOND)?);
    }
    agent.terminate()?;
    between(node)?;
    let agent = Agent::start(node, &lab, after)?;
    agent.wait_ready()?;
    serves(&lab, &client, &service)?;
    for beat in beats {
        let report = beat.stop()?;
        assert!(
            report.lost.is_empty() && report.failure.is_none(),
            "{report:?}"
        );
    }
    let second = programs(node)?;
    assert!(first.keys().eq(second.keys()), "{first:?}, {second:?}");
    let same = first
        .values()
        .filter(|id| second.values().any(|other| other == *id));
    match same.count() {
        0 => Ok(Programs::Loaded),
        count if count == first.len() => Ok(Programs::Taken),
        _ => anyhow::bail!("some were taken, others loaded: {first:?}, {second:?}"),
    }
}

fn serves(lab: &Lab, client: &Pod, service: &Served) -> Result<()> {
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
        client.run(|| ask_udp(frontend, 64))?;
    }
    Ok(())
}

#[rstest]
fn a_restart_takes_the_programs_as_they_are(
    #[values(Sockets::Off, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let options = AgentOptions::with_sockets(sockets);
    assert_eq!(restart(&options, &options, |_| Ok(()))?, Programs::Taken);
    Ok(())
}

#[test]
fn programs_that_were_told_otherwise_are_loaded() -> Result<()> {
    let other = AgentOptions::with(&["--masquerade-ports", "30000-40000"]);
    let programs = restart(&AgentOptions::default(), &other, |_| Ok(()))?;
    assert_eq!(programs, Programs::Loaded);
    Ok(())
}

#[test]
fn programs_on_smaller_tables_are_loaded() -> Result<()> {
    let larger = AgentOptions {
        flow_table_size: 65_536,
        ..AgentOptions::default()
    };
    let programs = restart(&AgentOptions::default(), &larger, |_| Ok(()))?;
    assert_eq!(programs, Programs::Loaded);
    Ok(())
}

#[test]
fn programs_are_loaded_where_a_pin_is_missing() -> Result<()> {
    let options = AgentOptions::default();
    let programs = restart(&options, &options, |node| {
        let folder = Pins::new(node.pins().path()).programs();
        Ok(fs::remove_file(folder.join("host_slow_v6"))?)
    })?;
    assert_eq!(programs, Programs::Loaded);
    Ok(())
}
