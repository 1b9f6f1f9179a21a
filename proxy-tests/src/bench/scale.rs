//! One agent of a large cluster: what the API server sends it, and what it costs. The
//! API server is made up, the agent and the node's tables are real.

mod server;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::server::Server;
use super::{machine, table::Table};
use crate::{
    Agent, AgentOptions, Lab, Topology,
    agent::{Sockets, Source},
    poll::eventually,
};

/// With a cluster of this size; also in a debug build.
const FIRST_SYNC: Duration = Duration::from_mins(10);

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Pods behind each Service, with an endpoint in each family
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    #[arg(long, default_value_t = 5_000)]
    nodes: usize,
    /// Seconds of each phase
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Pods that are replaced in a second, for each phase. 10 is what Kubernetes' load test
    /// (`clusterloader2/testing/load` of perf-tests) does in clusters of any size
    #[arg(long, value_delimiter = ',', default_value = "0,10,100")]
    pods_per_second: Vec<u64>,
}

/// What was sent and spent so far.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    sent: u64,
    cpu: Duration,
}

/// Measures everything and prints it.
pub fn run(args: &Args) -> Result<()> {
    let Args {
        services,
        endpoints,
        nodes,
        ..
    } = *args;
    println!(
        "One agent and an API server with {services} dual-stack Services, {endpoints} pods behind"
    );
    println!(
        "each, on {nodes} nodes. A pod that is replaced is a change of two EndpointSlices. Without"
    );
    println!("TLS. {}.", machine::describe());
    println!();
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let server = node.run(|| Server::start(services, endpoints, nodes))?;
    let kubeconfig = lab.scratch.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())?;
    let options = AgentOptions {
        source: Source::Kubeconfig(kubeconfig),
        sockets: Sockets::Off,
        max_service_ports: 65_536,
        max_endpoints: 262_144,
        ..AgentOptions::default()
    };
    let start = Instant::now();
    let agent = Agent::start(node, &lab, &options)?;
    let sample = || -> Result<Sample> {
        Ok(Sample {
            at: Instant::now(),
            sent: server.sent(),
            cpu: agent.cpu()?,
        })
    };
    eventually("the first sync", FIRST_SYNC, || {
        let log = agent.log();
        anyhow::ensure!(log.matches("first sync done").count() == 2, "{log}");
        Ok(())
    })?;
    let first = sample()?;
    let mut table = Table::new(&[
        "",
        "seconds",
        "MB received",
        "kB/s",
        "CPU, % of one",
        "MB resident",
    ]);
    table.row(vec![
        "start".to_owned(),
        format!("{:.1}", start.elapsed().as_secs_f64()),
        format!("{:.1}", megabytes(first.sent)),
        String::new(),
        format!("({:.1} s)", first.cpu.as_secs_f64()),
        resident(&agent)?,
    ]);
    for pods in &args.pods_per_second {
        eprintln!("{pods} pods a second …");
        let before = sample()?;
        let replaced = server.churn(*pods, Duration::from_secs(args.seconds));
        let after = sample()?;
        let seconds = (after.at - before.at).as_secs_f64();
        let sent = megabytes(after.sent - before.sent);
        let cpu = (after.cpu.saturating_sub(before.cpu)).as_secs_f64();
        table.row(vec![
            format!("{:.0} pods/s", f64::from(replaced) / seconds),
            format!("{seconds:.0}"),
            format!("{sent:.1}"),
            format!("{:.1}", sent * 1000.0 / seconds),
            format!("{:.1}", cpu * 100.0 / seconds),
            resident(&agent)?,
        ]);
    }
    table.print();
    let state = lab
        .scratch
        .path()
        .join(format!("{}-state/state", node.name()));
    let size = fs::metadata(&state).context("the last known state")?.len();
    println!();
    println!(
        "The last known state on disk has {:.1} MB.",
        megabytes(size)
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn resident(agent: &Agent) -> Result<String> {
    Ok(format!("{:.0}", megabytes(agent.resident()? * 1024)))
}
