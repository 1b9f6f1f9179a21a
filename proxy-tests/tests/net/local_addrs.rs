//! The table of the node's own addresses follows the kernel (E25, S52–S55).

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{
    Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use proxy_agent::dataplane::{pins::Pins, tables::KernelFamily};
use proxy_common::{
    family::{V4, V6},
    local_addr::LocalAddr,
};
use proxy_tests::{AgentOptions, Family, Lab, Node, Topology, agent, eventually};
use rstest::rstest;
use serde::Deserialize;

/// From a change of routes or addresses to its effect.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// A row of `proxy-agent get addresses`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Row {
    prefix: String,
    node_ports: bool,
    loopback: bool,
}

impl Row {
    fn of(prefix: &str, node_ports: bool, loopback: bool) -> Self {
        Self {
            prefix: prefix.to_owned(),
            node_ports,
            loopback,
        }
    }
}

fn rows(node: &Node) -> Result<Vec<Row>> {
    let json = agent::command(node, &["get", "addresses", "-o", "json"])?;
    serde_json::from_str(&json).context(json)
}

/// The table holds these rows within the deadline.
fn expect_rows(node: &Node, expected: &[Row]) -> Result<()> {
    eventually("the table has the rows", FOLLOWED_WITHIN, || {
        let rows = rows(node)?;
        for row in expected {
            ensure!(rows.contains(row), "no {row:?} in {rows:?}");
        }
        Ok(())
    })
}

/// The table holds nothing of these prefixes within the deadline.
fn expect_gone(node: &Node, prefixes: &[&str]) -> Result<()> {
    eventually("the table has no such row", FOLLOWED_WITHIN, || {
        let rows = rows(node)?;
        for row in &rows {
            ensure!(!prefixes.contains(&row.prefix.as_str()), "{row:?} is there");
        }
        Ok(())
    })
}

/// The address of an address with full length.
fn host(node: &Node, family: Family) -> String {
    let length = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    format!("{}/{length}", node.address(family))
}

/// Removes an address from the table behind the agent's back.
fn remove<F: KernelFamily>(pins: &Pins, ip: F::Ip) -> Result<()> {
    let pin = pins.map(&format!("LOCAL_ADDRS_{}", F::SUFFIX));
    let map = Map::from_map_data(MapData::from_pin(pin)?)?;
    let mut table: LpmTrie<MapData, F::Addr, LocalAddr> = map.try_into()?;
    let length = u32::try_from(size_of::<F::Addr>() * 8)?;
    Ok(table.remove(&Key::new(length, F::addr(ip)))?)
}

/// Addresses are there from the start, and come and go while the agent runs.
/// Link-local ones are none of the node's.
#[test]
fn addresses_come_and_go() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let own = Family::BOTH.map(|family| Row::of(&host(node, family), true, false));
    expect_rows(node, &own)?;
    let loopback = ["127.0.0.0/8", "::1/128"].map(|prefix| Row::of(prefix, true, true));
    expect_rows(node, &loopback)?;
    let rows = rows(node)?;
    ensure!(
        rows.iter().all(|row| !row.prefix.starts_with("fe80:")),
        "{rows:?}"
    );

    let new = ["198.51.100.7/32", "2001:db8::7/128"];
    node.ip("addr add 198.51.100.7/24 dev eth0\naddr add 2001:db8::7/64 dev eth0 nodad")?;
    expect_rows(node, &new.map(|prefix| Row::of(prefix, true, false)))?;
    node.ip("addr del 198.51.100.7/24 dev eth0\naddr del 2001:db8::7/64 dev eth0")?;
    expect_gone(node, &new)?;
    expect_rows(node, &own)
}

/// Destinations in the local routing table are local, whole prefixes too,
/// although no device has an address of them (E25).
#[test]
fn local_routes_count_as_addresses() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let _agents = lab.start_agents(&AgentOptions::default())?;
    let prefixes = ["10.9.0.0/24", "fd09::/64"];
    node.ip("route add local 10.9.0.0/24 dev lo\nroute add local fd09::/64 dev lo")?;
    expect_rows(node, &prefixes.map(|prefix| Row::of(prefix, true, false)))?;
    node.ip("route del local 10.9.0.0/24 dev lo\nroute del local fd09::/64 dev lo")?;
    expect_gone(node, &prefixes)?;
    // Of a device that goes, the kernel names no route.
    node.ip("link add gone type bridge\nlink set gone up\naddr add 198.51.100.9/32 dev gone")?;
    node.ip("addr add 2001:db8::9/128 dev gone nodad")?;
    let both = ["198.51.100.9/32", "2001:db8::9/128"];
    expect_rows(node, &both.map(|prefix| Row::of(prefix, true, false)))?;
    node.ip("link del gone")?;
    expect_gone(node, &both)
}

/// S52–S55: only some addresses take NodePorts, those that come later too.
#[rstest]
#[case::cidrs("198.51.100.0/24,2001:db8::/64", [false, false], [true, true], false)]
#[case::one_family("198.51.100.0/24", [false, true], [true, true], false)]
#[case::primary("primary", [true, true], [false, false], false)]
#[case::localhost("localhost", [false, false], [false, false], true)]
#[case::all("all", [true, true], [true, true], true)]
fn only_some_take_node_ports(
    #[case] flag: &str,
    #[case] own: [bool; 2],
    #[case] later: [bool; 2],
    #[case] loopback: bool,
) -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let options = AgentOptions::with(&["--nodeport-addresses", flag]);
    let _agents = lab.start_agents(&options)?;
    node.ip("addr add 198.51.100.7/24 dev eth0\naddr add 2001:db8::7/64 dev eth0 nodad")?;
    let [v4, v6] = Family::BOTH.map(|family| host(node, family));
    let rows = [
        Row::of(&v4, own[0], false),
        Row::of(&v6, own[1], false),
        Row::of("198.51.100.7/32", later[0], false),
        Row::of("2001:db8::7/128", later[1], false),
        Row::of("127.0.0.0/8", loopback, true),
    ];
    expect_rows(node, &rows)
}

/// A new agent takes the table over: what changed meanwhile is put right, what
/// did not is not written, and what others did is repaired from time to time.
#[test]
fn tables_are_adopted_and_repaired() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let mut agents = lab.start_agents(&AgentOptions::default())?;
    node.ip("addr add 198.51.100.7/32 dev eth0\naddr add 2001:db8::7/128 dev eth0 nodad")?;
    let new = ["198.51.100.7/32", "2001:db8::7/128"].map(|prefix| Row::of(prefix, true, false));
    expect_rows(node, &new)?;
    agents.pop().context("the agent")?.terminate()?;
    node.ip("addr del 198.51.100.7/32 dev eth0\naddr del 2001:db8::7/128 dev eth0")?;
    ensure!(
        rows(node)?.contains(&new[0]),
        "the table outlives the agent"
    );

    let agents = lab.start_agents(&AgentOptions::with(&["--audit-period", "1s"]))?;
    expect_gone(node, &["198.51.100.7/32", "2001:db8::7/128"])?;

    let pins = Pins::new(node.pins().path());
    for family in Family::BOTH {
        match node.address(family) {
            IpAddr::V4(ip) => remove::<V4>(&pins, ip)?,
            IpAddr::V6(ip) => remove::<V6>(&pins, ip)?,
        }
    }
    let own = Family::BOTH.map(|family| Row::of(&host(node, family), true, false));
    eventually("the table is repaired", Duration::from_secs(3), || {
        let rows = rows(node)?;
        for row in &own {
            ensure!(rows.contains(row), "no {row:?} in {rows:?}");
        }
        Ok(())
    })?;
    let metrics = agents[0].metrics()?;
    for family in ["IPv4", "IPv6"] {
        let line = format!("tandem_audit_repairs_total{{ip_family=\"{family}\"}} 1");
        ensure!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
    Ok(())
}

/// S53: the node's own address is known from its object, and stays the one that
/// takes NodePorts when the object goes and when the agent is another.
#[test]
fn a_node_object_that_goes_opens_nothing() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let options = AgentOptions::with(&["--nodeport-addresses", "primary"]);
    let mut agents = lab.start_agents(&options)?;
    let [v4, v6] = Family::BOTH.map(|family| Row::of(&host(node, family), true, false));
    expect_rows(node, &[v4.clone(), v6.clone()])?;

    lab.manifests.write_objects(node.name(), &[])?;
    node.ip("addr add 198.51.100.7/24 dev eth0\naddr add 2001:db8::7/64 dev eth0 nodad")?;
    let others = ["198.51.100.7/32", "2001:db8::7/128"].map(|prefix| Row::of(prefix, false, false));
    expect_rows(node, &others)?;
    expect_rows(node, &[v4, v6])?;

    let before = rows(node)?;
    agents.pop().context("the agent")?.terminate()?;
    let _agents = lab.start_agents(&options)?;
    ensure!(rows(node)? == before, "{before:?}");
    Ok(())
}
