//! Time that the programs take while real traffic runs through them, by the kernel's
//! statistics: caches are cold there, other work is between two runs, and packets have
//! the shape that sockets and devices give them. An empty program at the same hooks,
//! in the same run, is the floor that the figures are taken above.

mod load;
mod programs;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};

use self::{
    load::Load,
    programs::{EmptyProgram, Programs, Times},
};
use super::{machine, table::Table};
use crate::{
    Agent, AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Pod, Served, Sockets, Topology,
};

#[derive(clap::Args)]
pub struct Args {
    /// Time that each load runs, in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

/// A way of packets and calls through the programs.
#[derive(Clone, Copy, Debug)]
enum Path {
    /// Straight to the pod: nothing is translated.
    NotOurs,
    /// To the cluster IP, translated packet by packet.
    Packets,
    /// To the cluster IP, translated in the call.
    Sockets,
}

impl Path {
    const ALL: [Self; 3] = [Self::NotOurs, Self::Packets, Self::Sockets];

    fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "not ours",
            Self::Packets => "packets",
            Self::Sockets => "sockets",
        }
    }

    fn sockets(self) -> Sockets {
        match self {
            Self::NotOurs | Self::Packets => Sockets::Off,
            Self::Sockets => Sockets::All,
        }
    }
}

/// Client and server are pods of one node.
struct Stand {
    // Detached before their devices go.
    empty: EmptyProgram,
    service: Served,
    server: Pod,
    client: Pod,
    lab: Lab,
}

impl Stand {
    fn build() -> Result<Self> {
        let lab = Lab::start(Topology::ONE_NODE)?;
        let [client, server] = lab.nodes[0].add_pods(["client", "server"])?;
        let service = lab.serve([&server])?;
        let empty =
            EmptyProgram::attach(&lab.nodes[0], &[client.node_device(), server.node_device()])?;
        Ok(Self {
            empty,
            service,
            server,
            client,
            lab,
        })
    }

    fn client(&self) -> &Host {
        &self.client
    }

    fn target(&self, path: Path, family: Family) -> SocketAddr {
        match path {
            Path::NotOurs => self.server.at(family, ECHO_TARGET),
            Path::Packets | Path::Sockets => self.service.at(family, ECHO_PORT),
        }
    }
}

/// What one load took on one way.
struct Figures {
    operations: u64,
    times: Times,
    /// Of an empty program, in ns.
    floor: f64,
}

/// Measures everything and prints it.
pub fn run(args: &Args) -> Result<()> {
    println!("Time of the programs under load, in ns above an empty program at the same");
    println!("hooks, by the kernel's statistics. Client and server are pods of one node.");
    println!("{}.", machine::describe());
    println!();
    let time = Duration::from_secs(args.seconds);
    let mut table = Table::new(&[
        "", "ingress", "egress", "call", "other", "runs/op", "ns/op", "empty",
    ]);
    for path in Path::ALL {
        let stand = Stand::build()?;
        let options = AgentOptions::with_sockets(path.sockets());
        let agent = Agent::start(&stand.lab.nodes[0], &stand.lab, &options)?;
        agent.wait_ready()?;
        for family in Family::BOTH {
            for load in Load::ALL {
                let name = format!("{family} {}: {}", path.name(), load.name());
                eprintln!("{name} …");
                let figures = measure(&stand, path, family, load, time);
                table.row(figures.with_context(|| name.clone())?.row(name));
            }
        }
    }
    table.print();
    Ok(())
}

fn measure(
    stand: &Stand,
    path: Path,
    family: Family,
    load: Load,
    time: Duration,
) -> Result<Figures> {
    let programs = Programs::of(&stand.lab.nodes[0])?;
    let target = stand.target(path, family);
    let statistics = enable_stats(Stats::RunTime).context("enable run-time statistics")?;
    let (before, empty_before) = (programs.times(), stand.empty.time()?);
    let operations = stand.client().run(|| load.run(target, time))?;
    let (after, empty_after) = (programs.times(), stand.empty.time()?);
    drop(statistics);
    Ok(Figures {
        operations,
        times: after.since(&before),
        floor: empty_after.since(empty_before).average(),
    })
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
    fn row(&self, name: String) -> Vec<String> {
        let Self {
            operations,
            times,
            floor,
        } = self;
        // Those of fewer runs belong to other traffic of the node.
        let above = |runs: u64, average: f64| {
            if runs * 2 < *operations {
                String::from("-")
            } else {
                format!("{:.0}", average - floor)
            }
        };
        let each = [times.ingress, times.egress, times.calls, times.others];
        let runs: u64 = each.iter().map(|time| time.runs).sum();
        let total: f64 = each
            .iter()
            .map(|time| time.ns as f64 - floor * time.runs as f64)
            .sum();
        let operations = (*operations).max(1) as f64;
        let mut row = vec![name];
        row.extend(each.iter().map(|time| above(time.runs, time.average())));
        row.extend([
            format!("{:.1}", runs as f64 / operations),
            format!("{:.0}", total / operations),
            format!("{floor:.0}"),
        ]);
        row
    }
}
