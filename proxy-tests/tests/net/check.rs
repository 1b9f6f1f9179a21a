//! `proxy-agent check` says what is in the way of Services on a host.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    Agent, AgentOptions, ECHO_PORT, Family, Lab, Service, Topology,
    addressing::lan,
    agent, eventually,
    family::Families,
    traffic::{PATIENCE, TcpClient},
};
use rstest::rstest;

fn expect(check: &str, line: &str) -> Result<()> {
    ensure!(
        check.lines().any(|each| each.starts_with(line)),
        "{line:?} is not in:\n{check}"
    );
    Ok(())
}

/// Routes and reverse path filters, of both families where they have them.
#[test]
fn check_tells_of_routes() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let check = || agent::command(node, &["check"]);
    node.sysctls(&[
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "0"),
    ])?;
    let before = check()?;
    expect(&before, "ok    the reverse path filter is not strict")?;
    expect(&before, "ok    IPv4 has a default route")?;
    expect(&before, "ok    IPv6 has a default route")?;

    node.ip("route del ::/0")?;
    let check_v6 = check()?;
    expect(&check_v6, "ok    IPv4 has a default route")?;
    expect(&check_v6, "warn  IPv6 has no default route")?;
    node.ip("route del 0.0.0.0/0")?;
    expect(&check()?, "warn  IPv4 has no default route")?;

    node.sysctl("net/ipv4/conf/eth0/rp_filter", "1")?;
    expect(&check()?, "ok    the reverse path filter is strict on eth0")?;
    let gateway = lan(Family::V4, 0, 1);
    node.ip(&format!(
        "link add second type veth peer name second-peer\nlink set second up\n\
         link set second-peer up\naddr add 198.51.100.1/24 dev second\n\
         route add 203.0.113.0/25 via {gateway}\n\
         route add 203.0.113.128/25 via 198.51.100.2"
    ))?;
    node.sysctl("net/ipv4/conf/second/rp_filter", "2")?;
    expect(&check()?, "ok    the reverse path filter is strict on eth0")?;
    node.sysctl("net/ipv4/conf/second/rp_filter", "1")?;
    expect(
        &check()?,
        "warn  the reverse path filter is strict on several devices that lead away (eth0, second)",
    )
}

/// A node need not have both families, or forward the one it does not have.
#[rstest]
fn check_passes_nodes_of_one_family(
    #[values(Families::V4Only, Families::V6Only)] families: Families,
) -> Result<()> {
    let lab = Lab::start(Topology {
        families,
        ..Topology::ONE_NODE
    })?;
    let node = &lab.nodes[0];
    let other = match families {
        Families::V4Only => "net/ipv6/conf/all/forwarding",
        _ => "net/ipv4/ip_forward",
    };
    node.sysctl(other, "0")?;
    agent::command(node, &["check"]).map(drop)
}

/// Processes of a node that does not forward reach no endpoint elsewhere in
/// packets; `check` and the agent say that, and what to do.
#[test]
fn a_node_that_does_not_forward_is_told_so() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let remote = lab.nodes[1].add_pod("remote")?;
    let service = Service::echo(lab.families()).endpoint(&remote);
    lab.manifests.write(&service)?;
    node.sysctls(&[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
    ])?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    let fails = |family| {
        let tcp = TcpClient::to(service.at(family, ECHO_PORT)).within(Duration::from_millis(200));
        ensure!(node.run(|| tcp.connect()).is_err(), "{family}");
        Ok(())
    };
    for (count, &family) in (1..).zip(lab.families().list()) {
        fails(family)?;
        ensure!(agent.counted("forwarding_off")? >= count, "{family}");
    }
    assert_eq!(agent.counted("no_route")?, 0);
    eventually("the agent says so", PATIENCE * 2, || {
        fails(Family::V4)?;
        let log = agent.log();
        ensure!(log.contains("net.ipv4.ip_forward=1"), "{log}");
        Ok(())
    })?;
    let check = agent::command_in_container(node, &["check"])?;
    ensure!(!check.status.success());
    let findings = String::from_utf8_lossy(&check.stdout);
    expect(&findings, "FAIL  IPv4 is not forwarded")?;
    expect(&findings, "FAIL  IPv6 is not forwarded")
}
