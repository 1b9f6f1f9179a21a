//! Flows that are masqueraded to one address and port of a backend: how many new
//! ones in a second, and how many at a time. Netfilter does the same in a lab built
//! alike, one after the other.

mod stand;

use std::{fmt::Display, time::Duration};

use anyhow::{Context, Result};

pub use self::stand::{Proxy, Stand};
use super::{machine, table::Table};
use crate::{
    Family,
    traffic::{HeldFlows, Round, ShortConnections, ShortReport, Transport},
};

/// Connections per second that must be served without loss.
const GOAL: u32 = 2000;

#[derive(clap::Args)]
pub struct Args {
    /// Time to open connections, in seconds, for each family and proxy
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Connections begun in a second at most; as many as the machine can do unless
    /// told
    #[arg(long)]
    rate: Option<u32>,
    /// Flows that are open at a time
    #[arg(long, default_value_t = 60_000)]
    flows: usize,
}

/// The figures of one proxy in one family.
#[derive(Debug)]
struct Figures {
    short: ShortReport,
    /// Of flows that were open at a time: when they opened, and when all were open.
    udp: [Round; 2],
    tcp: [Round; 2],
}

/// Measures everything and prints it.
pub fn run(args: &Args) -> Result<()> {
    println!("Flows of one client outside, with many addresses, to a NodePort, all of them");
    println!("masqueraded to one address and port of a backend on another node.");
    println!(
        "{}. Client, both nodes and backend share it:",
        machine::describe()
    );
    println!("compare figures of one run. A connection is a byte each way and a close by the");
    println!("client; failed is what had no byte back within 8 s. Netfilter is nftables' DNAT");
    println!("and MASQUERADE --random-fully.");
    println!();
    let mut columns = Vec::new();
    for family in Family::BOTH {
        for proxy in [Proxy::Tandem, Proxy::Netfilter] {
            eprintln!("{family}, {proxy} …");
            let figures = measure(proxy, family, args);
            let figures = figures.with_context(|| format!("{family}, {proxy}"))?;
            for failure in figures.failures() {
                eprintln!("  {failure}");
            }
            columns.push((format!("{family} {proxy}"), figures));
        }
    }
    print(&columns);
    Ok(())
}

/// Measures one proxy in one family, each figure in a lab of its own: ports of earlier
/// flows are not free for a while.
fn measure(proxy: Proxy, family: Family, args: &Args) -> Result<Figures> {
    let fresh = |work: &dyn Fn(&Stand) -> Result<[Round; 2]>| Stand::build()?.with(proxy, work);
    let time = Duration::from_secs(args.seconds);
    Ok(Figures {
        short: Stand::build()?.with(proxy, |stand| connect(stand, family, time, args.rate))?,
        udp: fresh(&|stand| hold(stand, family, Transport::Udp, args.flows))?,
        tcp: fresh(&|stand| hold(stand, family, Transport::Tcp, args.flows))?,
    })
}

/// Opens short connections for a time.
pub fn connect(
    stand: &Stand,
    family: Family,
    time: Duration,
    rate: Option<u32>,
) -> Result<ShortReport> {
    let connections = ShortConnections {
        target: stand.target(family),
        time,
        rate,
    };
    connections.run(stand.client(), stand.sources(family))
}

/// Opens so many flows and asks in each twice.
pub fn hold(
    stand: &Stand,
    family: Family,
    transport: Transport,
    count: usize,
) -> Result<[Round; 2]> {
    let flows = HeldFlows {
        transport,
        target: stand.target(family),
        count,
    };
    flows.run(stand.client(), &stand.sources(family))
}

impl Figures {
    /// Returns the failures, a line each.
    fn failures(&self) -> Vec<String> {
        let short = self.short.failures.iter();
        let mut lines: Vec<_> = short
            .map(|(error, count)| format!("{count} connections: {error}"))
            .collect();
        for (name, rounds) in [("UDP", &self.udp), ("TCP", &self.tcp)] {
            for (when, round) in ["opened", "asked again"].into_iter().zip(rounds) {
                let failures = round.failures.iter();
                lines.extend(
                    failures.map(|(error, count)| format!("{count} {name} flows {when}: {error}")),
                );
            }
        }
        lines
    }
}

fn print(columns: &[(String, Figures)]) {
    let titles = columns.iter().map(|(title, _)| title.as_str());
    let head: Vec<_> = [""].into_iter().chain(titles).chain(["goal"]).collect();
    let mut table = Table::new(&head);
    let mut row = |name: &str, figure: &dyn Fn(&Figures) -> String, goal: &dyn Display| {
        let figures = columns.iter().map(|(_, figures)| figure(figures));
        let goal = goal.to_string();
        table.row(
            [name.to_owned()]
                .into_iter()
                .chain(figures)
                .chain([goal])
                .collect(),
        );
    };
    let short = |figures: &Figures| figures.short.clone();
    row(
        "connections begun per second",
        &|f| format!("{:.0}", short(f).offered_rate()),
        &"",
    );
    row(
        "connections served per second",
        &|f| format!("{:.0}", short(f).rate()),
        &format_args!("≥ {GOAL}, ≥ netfilter"),
    );
    row("failed", &|f| short(f).failed().to_string(), &0);
    row("SYNs sent again", &|f| short(f).syns_again.to_string(), &"");
    let all = |rounds: &[Round; 2]| {
        let [opened, again] = rounds;
        format!("{}, {}", opened.answered, again.answered)
    };
    let asked = columns.first().map_or(0, |(_, first)| first.udp[0].asked);
    row(
        "UDP flows at a time, answered twice",
        &|f| all(&f.udp),
        &asked,
    );
    row(
        "TCP flows at a time, answered twice",
        &|f| all(&f.tcp),
        &asked,
    );
    row(
        "seconds to open them, UDP and TCP",
        &|f| {
            let [udp, tcp] = [&f.udp, &f.tcp].map(|[opened, _]| opened.took.as_secs_f64());
            format!("{udp:.1}, {tcp:.1}")
        },
        &"",
    );
    table.print();
}
