//! Short TCP connections, one after the other and many at a time: connect, a byte
//! each way, close.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Sources,
    crowd::{Crowd, Transport},
};
use crate::host::Host;

/// Connections at a time.
const WIDTH: usize = 128;

/// Many connections one after the other, each for one byte there and back.
#[derive(Clone, Copy, Debug)]
pub struct ShortConnections {
    pub target: SocketAddr,
    pub time: Duration,
    /// Connections begun in a second at most; else as many as the machine can do.
    pub rate: Option<u32>,
}

/// The result of [`ShortConnections`].
#[derive(Clone, Debug, Default)]
pub struct ShortReport {
    /// Begun.
    pub offered: u64,
    /// Had their byte back.
    pub served: u64,
    /// Number of failures by error.
    pub failures: BTreeMap<String, u64>,
    /// SYNs that the client sent again.
    pub syns_again: u64,
    /// From the first connection to the end of the last one.
    pub took: Duration,
}

impl ShortReport {
    /// Connections that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Served in a second.
    pub fn rate(&self) -> f64 {
        per_second(self.served, self.took)
    }

    /// Begun in a second.
    pub fn offered_rate(&self) -> f64 {
        per_second(self.offered, self.took)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of seconds or minutes")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

impl ShortConnections {
    /// Runs them from `client`.
    pub fn run(&self, client: &Host, sources: Sources) -> Result<ShortReport> {
        client.run(|| {
            let before = syns_again()?;
            let mut report = self.connect(sources)?;
            report.syns_again = syns_again()? - before;
            Ok(report)
        })
    }

    fn connect(&self, mut sources: Sources) -> io::Result<ShortReport> {
        let mut report = ShortReport::default();
        let mut crowd = Crowd::new()?;
        let start = Instant::now();
        loop {
            let over = start.elapsed() >= self.time;
            while !over && crowd.waiting() < WIDTH && self.is_due(report.offered, start) {
                report.offered += 1;
                let source = sources.next().expect("sources never end");
                if let Err(error) = crowd.begin(Transport::Tcp, source, self.target) {
                    report.note(&error);
                }
            }
            if over && crowd.waiting() == 0 {
                report.took = start.elapsed();
                return Ok(report);
            }
            for (number, outcome) in crowd.wait(1)? {
                match outcome {
                    Ok(()) => {
                        report.served += 1;
                        crowd.close(number);
                    }
                    Err(error) => report.note(&error),
                }
            }
        }
    }

    fn is_due(&self, offered: u64, start: Instant) -> bool {
        self.rate
            .is_none_or(|rate| per_second(offered, start.elapsed()) < f64::from(rate))
    }
}

impl ShortReport {
    fn note(&mut self, error: &io::Error) {
        *self.failures.entry(error.to_string()).or_default() += 1;
    }
}

/// `TCPSynRetrans` of this thread's network namespace.
fn syns_again() -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, counts) = (lines.next(), lines.next());
    let (names, counts) = names.zip(counts).context("no TcpExt in netstat")?;
    let column = names
        .split_whitespace()
        .position(|name| name == "TCPSynRetrans");
    let count = column.and_then(|column| counts.split_whitespace().nth(column));
    Ok(count.context("no TCPSynRetrans in netstat")?.parse()?)
}
