//! Programs and filters that an earlier agent, or somebody else, has left on the devices.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use proxy_agent::dataplane::pins::Pins;
use proxy_tests::{
    AgentOptions, ECHO_PORT, Host, Lab, Node, Service, Topology,
    agent::{self, Agent},
    eventually, kernel,
    traffic::{ask_tcp, ask_udp},
};
use rstest::rstest;

/// A filter in the place of ours. Classic BPF that returns 0: packets go on to
/// the next filter.
const FOREIGN: &str = "filter add dev eth0 ingress pref 1 protocol all handle 0x7a0d \
                       bpf bytecode '1,6 0 0 0'";
/// Time limit from a change by somebody else until the agent has noticed and repaired it.
const REPAIRED_WITHIN: Duration = Duration::from_secs(20);

/// A filter of somebody else in our place stays, on a device that is then not
/// served, which the log says; the others are.
#[test]
fn a_foreign_filter_in_our_place_is_not_replaced() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    node.exec("tc", &["qdisc", "add", "dev", "eth0", "clsact"])?;
    node.feed("tc", &["-batch", "-"], FOREIGN)?;

    let agents = lab.start_agents(&AgentOptions::with(&["--attach", "clsact"]))?;
    expect_service(&client, &lab, &service)?;
    let filters = filters(node, "eth0", "ingress")?;
    assert_eq!(filters, [String::new()], "the foreign filter alone");
    let log = agents[0].log();
    assert!(log.contains("a filter of somebody else"), "{log}");

    // Nothing else changes: the agent has to look again by itself.
    node.exec("tc", &["filter", "del", "dev", "eth0", "ingress"])?;
    eventually("served once the place is free", REPAIRED_WITHIN, || {
        let filters = self::filters(node, "eth0", "ingress")?;
        ensure!(filters == ["ingress"], "{filters:?}");
        Ok(())
    })?;
    node.exec("tc", &["filter", "del", "dev", "eth0", "ingress"])?;
    node.feed("tc", &["-batch", "-"], FOREIGN)?;

    drop(agents);
    agent::command(node, &["cleanup"])?;
    assert_eq!(self::filters(node, "eth0", "ingress")?, [String::new()]);
    assert_eq!(
        self::filters(node, client.node_device(), "ingress")?,
        [""; 0]
    );
    Ok(())
}

/// Filters of an agent whose pins are lost are known, replaced by the next
/// agent, and removed by `cleanup`.
#[test]
fn filters_without_pins_are_still_ours() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let options = AgentOptions::with(&["--attach", "clsact"]);
    for _ in 0..2 {
        let agent = Agent::start(node, &lab, &options)?;
        agent.wait_ready()?;
        for (hook, name) in [("ingress", "ingress"), ("egress", "egress")] {
            assert_eq!(filters(node, "eth0", hook)?, [name]);
        }
        expect_service(&client, &lab, &service)?;
        agent.crash()?;
        fs::remove_dir_all(node.pins().path())?;
    }
    agent::command(node, &["cleanup"])?;
    for hook in ["ingress", "egress"] {
        assert_eq!(filters(node, "eth0", hook)?, [""; 0]);
    }
    Ok(())
}

/// An agent that is told to attach the other way leaves nothing of the first.
#[test]
fn the_way_of_attaching_can_change() -> Result<()> {
    if !kernel::TCX.is_here() {
        return Ok(());
    }
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    for mode in ["tcx", "clsact", "tcx"] {
        let agent = Agent::start(node, &lab, &AgentOptions::with(&["--attach", mode]))?;
        agent.wait_ready()?;
        expect_service(&client, &lab, &service)?;
        // The kernel takes programs off their devices in the background.
        eventually("one program on each hook", Duration::from_secs(1), || {
            let devices = agent::command(node, &["get", "devices", "--output", "json"])?;
            let devices: serde_json::Value = serde_json::from_str(&devices)?;
            for device in devices.as_array().into_iter().flatten() {
                for hook in ["ingress", "egress"] {
                    let programs = device[hook].as_array();
                    let ways: Vec<_> = programs
                        .into_iter()
                        .flatten()
                        .map(|program| program["attached"].as_str())
                        .collect();
                    ensure!(ways == [Some(mode)], "{device}");
                }
            }
            Ok(())
        })?;
        agent.crash()?;
    }
    Ok(())
}

/// Somebody takes the programs off the devices, as other network plugins' clean
/// up does: without their links or filters the agent puts them there again.
#[rstest]
fn programs_that_somebody_takes_off_come_back(#[values("tcx", "clsact")] mode: &str) -> Result<()> {
    if !kernel::can_attach(mode) {
        return Ok(());
    }
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let options = AgentOptions::with(&["--attach", mode, "--audit-period", "200ms"]);
    let agents = lab.start_agents(&options)?;
    expect_service(&client, &lab, &service)?;
    match mode {
        "tcx" => fs::remove_dir_all(Pins::new(node.pins().path()).links())?,
        _ => {
            for device in ["eth0", client.node_device(), backend.node_device()] {
                node.exec("tc", &["qdisc", "del", "dev", device, "clsact"])?;
            }
        }
    }
    eventually("the programs are back", REPAIRED_WITHIN, || {
        // The kernel may take some time to take them off.
        let noticed = agents[0].log().contains("were taken off by someone else");
        ensure!(noticed, "nobody has noticed");
        expect_service(&client, &lab, &service)
    })
}

fn expect_service(client: &Host, lab: &Lab, service: &Service) -> Result<()> {
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
        client.run(|| ask_udp(frontend, 64))?;
    }
    Ok(())
}

/// Names of the BPF filters on a device's hook; empty for those without.
fn filters(node: &Node, device: &str, hook: &str) -> Result<Vec<String>> {
    let shown = node.exec("tc", &["-json", "filter", "show", "dev", device, hook])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let filters = shown.as_array().into_iter().flatten();
    Ok(filters
        .map(|filter| &filter["options"])
        .filter(|options| options["handle"].is_string())
        .map(|options| options["bpf_name"].as_str().unwrap_or_default().to_owned())
        .collect())
}
