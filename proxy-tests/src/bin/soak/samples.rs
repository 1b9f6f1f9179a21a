//! Memory of the agent that runs until the end, and use of its tables.

use std::fmt;

use anyhow::Result;
use proxy_tests::Agent;

/// The values measured at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// The agent's resident memory, in KiB.
    memory: u64,
    /// Flows of both families.
    flows: u64,
    /// Masquerade ports in use, of both families.
    ports: u64,
}

impl Sample {
    const NAMES: [&str; 3] = ["agent's memory, KiB", "flows", "masquerade ports"];

    fn values(self) -> [u64; 3] {
        [self.memory, self.flows, self.ports]
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in Self::NAMES.into_iter().zip(self.values()) {
            write!(formatter, "{name} {value:>7}   ")?;
        }
        Ok(())
    }
}

/// All that were taken.
#[derive(Default)]
pub(crate) struct Samples(Vec<Sample>);

impl Samples {
    pub(crate) fn take(&mut self, agent: &Agent<'_>) -> Result<Sample> {
        let metrics = agent.metrics()?;
        let sum = |name: &str| -> u64 {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            values.sum()
        };
        let sample = Sample {
            memory: agent.resident()?,
            flows: sum("tandem_flows{"),
            ports: sum("tandem_masquerade_ports_in_use{"),
        };
        self.0.push(sample);
        Ok(sample)
    }
}

impl fmt::Display for Samples {
    /// The largest of each quarter of the time: growth is what goes on.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:<24}", "largest in each quarter")?;
        for (column, name) in Sample::NAMES.into_iter().enumerate() {
            write!(formatter, "\n{name:<24}")?;
            for quarter in self.0.chunks(self.0.len().div_ceil(4).max(1)) {
                let values = quarter.iter().map(|sample| sample.values()[column]);
                write!(formatter, "{:>10}", values.max().unwrap_or_default())?;
            }
        }
        writeln!(formatter)
    }
}
