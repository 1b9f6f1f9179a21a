//! A larger `--flow-table-size` takes effect while flows are open.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_agent::dataplane::{maps::Maps as _, pins::Pins};
use proxy_tests::agent::Agent;
use proxy_tests::traffic::{Heartbeat, Server, ask_tcp};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, Node, Service, Sockets, Topology, eventually,
};
use rstest::rstest;

const BEAT: Duration = Duration::from_millis(20);
/// Conversations of each client: with another backend at hand, some would move if their
/// flows were lost.
const MANY: usize = 8;

/// Agents with tables of 1024, 4096 and again 1024 flows follow each other, in order and
/// by a crash: no flow loses a packet or its backend, and tables only grow.
#[rstest]
fn flow_tables_grow_under_open_flows(#[values(true, false)] crash: bool) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let (node, remote) = (&lab.nodes[0], &lab.nodes[1]);
    let client = node.add_pod("client")?;
    let [kept, added] = remote.add_pods(["kept", "added"])?;
    let _servers = [
        Server::start(&kept, ECHO_TARGET)?,
        Server::start(&added, ECHO_TARGET)?,
    ];
    let service = Service::echo(lab.families()).endpoint(&kept);
    lab.manifests.write(&service)?;
    let options = |flow_table_size| AgentOptions {
        flow_table_size,
        sockets: Sockets::Off,
        ..AgentOptions::default()
    };
    let mut agent = Agent::start(node, &lab, &options(1024))?;
    agent.wait_ready()?;
    let mut beats = Vec::new();
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for _ in 0..MANY {
            // Those of the node's own processes are masqueraded.
            beats.push(Heartbeat::udp(&client, frontend, BEAT)?);
            beats.push(Heartbeat::udp(node, frontend, BEAT)?);
        }
        beats.push(Heartbeat::tcp(&client, frontend, BEAT)?);
        beats.push(Heartbeat::tcp(node, frontend, BEAT)?);
    }
    lab.manifests.write(&service.clone().endpoint(&added))?;
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        eventually("the added endpoint is used", Duration::from_secs(5), || {
            let answer = client.run(|| ask_tcp(frontend))?;
            ensure!(answer.server == "added", "only the kept one");
            Ok(())
        })?;
    }
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
    let left: Vec<_> = node.pins().pins()?;
    let former = |pin: &&std::path::PathBuf| pin.to_string_lossy().ends_with("-former");
    ensure!(!left.iter().any(|pin| former(&pin)), "{left:?}");
    Ok(())
}
