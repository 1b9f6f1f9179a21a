//! `proxy-agent check` says what is in the way of Services on a host.

use anyhow::{Result, ensure};
use proxy_tests::addressing::lan;
use proxy_tests::{Family, Lab, Topology, agent};

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
