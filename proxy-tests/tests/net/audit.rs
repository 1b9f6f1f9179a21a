//! The agent compares the real tables with what they should be.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_agent::{
    dataplane::{
        Dataplane,
        mapped::Access,
        pins::Pins,
        tables::{KernelFamily, KernelTables, open_flows},
    },
    plan::write::Write,
};
use proxy_common::{
    family::{V4, V6},
    net::Protocol,
    prefilter,
};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Lab, Service, Topology, eventually,
    traffic::{TcpClient, ask_tcp},
};

/// Several comparisons.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// A frontend that somebody deletes comes back in each family, and the log
/// says so once.
#[test]
fn what_somebody_deletes_comes_back() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agents = lab.start_agents(&AgentOptions::with(&["--audit-period", "200ms"]))?;

    let pins = Pins::new(node.pins().path());
    delete_frontend::<V4>(&pins)?;
    delete_frontend::<V6>(&pins)?;
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        eventually("the frontend is back", REPAIRED_WITHIN, || {
            Ok(client.run(|| ask_tcp(frontend))?)
        })?;
    }
    eventually("both repairs are logged", REPAIRED_WITHIN, || {
        let log = agents[0].log();
        let repairs: Vec<_> = log.lines().filter(|line| line.contains("repair")).collect();
        for family in ["IPv4", "IPv6"] {
            let count = repairs.iter().filter(|line| line.contains(family)).count();
            ensure!(count == 1, "{count} of {family} in {repairs:#?}");
        }
        Ok(())
    })
}

/// Comparing finds no difference where there is none, also if the last Service
/// has no endpoint.
#[test]
fn nothing_is_repaired_that_is_as_it_should_be() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    lab.manifests.write(&Service::echo(lab.families()))?;
    let agents = lab.start_agents(&AgentOptions::with(&["--audit-period", "200ms", "-v"]))?;
    eventually("two comparisons", REPAIRED_WITHIN, || {
        let log = agents[0].log();
        ensure!(!log.contains("repair"), "{log}");
        for family in ["IPv4", "IPv6"] {
            let lines = log.lines().filter(|line| line.contains(family));
            let done = lines.filter(|line| line.contains("as they should be"));
            ensure!(done.count() >= 2, "not yet in {family}");
        }
        Ok(())
    })
}

/// Bits of the filters go with what they stand for, but not those of a
/// connection that outlives its Service and is not to notice.
#[test]
fn the_filters_forget_what_nobody_needs() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::with(&["--audit-period", "200ms"]))?;
    let pins = Pins::new(node.pins().path());
    expect_bits::<V4>(&pins, [1, 2])?;
    expect_bits::<V6>(&pins, [1, 2])?;

    let mut connections = Vec::new();
    for &family in lab.families().list() {
        let tcp = TcpClient::to(service.at(family, ECHO_PORT));
        connections.push(client.run(|| tcp.connect())?);
    }
    lab.manifests.delete(&service)?;
    // The UDP port's backend has no flow.
    expect_bits::<V4>(&pins, [1, 1])?;
    expect_bits::<V6>(&pins, [1, 1])?;
    for connection in connections {
        connection.upload(1_000_000)?;
    }
    forget_flows::<V4>(&pins)?;
    forget_flows::<V6>(&pins)?;
    expect_bits::<V4>(&pins, [0, 0])?;
    expect_bits::<V6>(&pins, [0, 0])
}

/// Waits for so many bits in the filters of frontends and of backends.
fn expect_bits<F: KernelFamily>(pins: &Pins, expected: [u32; 2]) -> Result<()> {
    eventually("the bits that are needed", REPAIRED_WITHIN, || {
        let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
        let found = [prefilter::FRONTENDS, prefilter::BACKENDS].map(|filter| {
            let words = &tables.filters[filter as usize];
            words.iter().map(|word| word.count_ones()).sum::<u32>()
        });
        ensure!(
            found == expected,
            "{}: {found:?}, not {expected:?}",
            F::NAME
        );
        Ok(())
    })
}

fn forget_flows<F: KernelFamily>(pins: &Pins) -> Result<()> {
    let mut flows = open_flows::<F>(pins)?;
    for key in flows.keys().collect::<Result<Vec<_>, _>>()? {
        flows.remove(&key)?;
    }
    Ok(())
}

/// One only: a comparison may happen between two.
fn delete_frontend<F: KernelFamily>(pins: &Pins) -> Result<()> {
    let mut tables = KernelTables::<F>::open(pins, Access::Write)?;
    let found = tables.read()?.frontends;
    let key = found
        .into_keys()
        .find(|key| key.port.get() == ECHO_PORT && key.protocol == Protocol::TCP)
        .with_context(|| format!("no {} frontend", F::NAME))?;
    Ok(tables.write(&Write::DeleteFrontend { key })?)
}
