//! Settings of netfilter's connection tracking, which other flows of the node rely on.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{AgentOptions, Host, Lab, Topology, agent::Agent, eventually};

const ENDED: Duration = Duration::from_secs(30);
const CLOSE_WAIT: &str = "nf_conntrack_tcp_timeout_close_wait";
const ESTABLISHED: &str = "nf_conntrack_tcp_timeout_established";
const LIBERAL: &str = "nf_conntrack_tcp_be_liberal";

fn value(host: &Host, name: &str) -> Result<String> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    Ok(host
        .run(|| std::fs::read_to_string(path))?
        .trim()
        .to_owned())
}

/// Without flags nothing is touched; with them what they name, and nothing else (S82).
#[test]
fn the_settings_are_those_of_the_flags() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    // Connection tracking is there once a rule needs it.
    node.nft("table inet t { chain c { ct state established accept; }; }")?;
    let names = [CLOSE_WAIT, ESTABLISHED, LIBERAL];
    let read = || names.map(|name| value(node, name).unwrap_or_default());
    let before = read();
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    ensure!(read() == before, "{before:?} became {:?}", read());
    agent.terminate()?;

    let options = AgentOptions::with(&[
        "--conntrack-tcp-timeout-close-wait=1h",
        "--conntrack-tcp-be-liberal",
    ]);
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    let [close_wait, established, liberal] = read();
    ensure!(
        close_wait == "3600" && liberal == "1",
        "{close_wait} {liberal}"
    );
    ensure!(established == before[1], "{established}");
    let log = agent.log();
    let said = format!("{CLOSE_WAIT} is 3600 now, it was {}", before[0]);
    ensure!(log.contains(&said), "{log}");
    Ok(())
}

/// What cannot be set is named, with what to do; Services do not depend on it.
#[test]
fn a_setting_that_cannot_be_made_is_named() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let elsewhere = lab.scratch.path().display().to_string();
    let options = AgentOptions::with(&["--conntrack-udp-timeout=30s", "--proc-sys", &elsewhere]);
    let agent = Agent::start(node, &lab, &options)?;
    eventually("it is told", ENDED, || {
        let log = agent.log();
        ensure!(
            log.contains("nf_conntrack_udp_timeout: `modprobe nf_conntrack`"),
            "{log}"
        );
        Ok(())
    })?;
    agent.wait_ready()
}
