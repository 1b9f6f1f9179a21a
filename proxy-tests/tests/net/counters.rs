//! The programs' counters outlive the agent that made the table.

use std::{fs, process::Command, time::Duration};

use anyhow::{Result, ensure};
use aya::maps::MapInfo;
use proxy_agent::dataplane::pins::Pins;
use proxy_common::counter::Counter;
use proxy_tests::{
    Agent, AgentOptions, ECHO_PORT, Lab, Service, Topology, exec, traffic::TcpClient,
};

/// Counters that an earlier agent knew, before there was [`Counter::NoEndpoint`].
const KNOWN: u32 = 3;

#[test]
fn the_table_has_room_for_new_counters() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let counters = Pins::new(node.pins().path()).map("COUNTERS");
    let room = MapInfo::from_pin(counters)?.max_entries();
    assert_eq!(usize::try_from(room)?, Counter::ROOM);
    assert!(
        Counter::ALL.len() + 16 <= Counter::ROOM,
        "time to make room"
    );
    Ok(())
}

/// A table without room for the newest counters is adopted: those it has go
/// on, the others are left out, and packets meet the same fate.
#[test]
fn a_smaller_table_is_adopted() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let client = node.add_pod("client")?;
    let service = Service::echo(lab.families());
    lab.manifests.write(&service)?;
    let pins = Pins::new(node.pins().path());
    fs::create_dir_all(pins.maps())?;
    let made = Command::new(exec::bpftool())
        .args(["map", "create"])
        .arg(pins.map("COUNTERS"))
        .args(["type", "percpu_array", "name", "COUNTERS"])
        .args(["key", "4", "value", "8", "entries", &KNOWN.to_string()])
        .status()?;
    ensure!(made.success(), "bpftool: {made}");

    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    for &family in lab.families().list() {
        let tcp = TcpClient::to(service.at(family, ECHO_PORT)).within(Duration::from_secs(2));
        let refused = client.run(|| tcp.connect()).expect_err("no endpoint");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let metrics = agent.metrics()?;
    let shown = |counter: Counter| metrics.contains(&format!("event=\"{}\"", counter.label()));
    assert!(shown(Counter::FlowCreated), "{metrics}");
    assert!(!shown(Counter::NoEndpoint), "{metrics}");
    Ok(())
}
