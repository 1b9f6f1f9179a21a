//! Runs a benchmark and prints its figures.

use std::process::ExitCode;

use anyhow::Result;
use proxy_tests::bench::datapath;

/// A benchmark: its name, what it tells, and how it is run.
type Benchmark = (&'static str, &'static str, fn() -> Result<()>);

const BENCHMARKS: [Benchmark; 1] = [(
    "datapath",
    "kernel time per packet, by test runs",
    datapath::run,
)];

fn main() -> ExitCode {
    let name = std::env::args().nth(1);
    let chosen = BENCHMARKS
        .iter()
        .find(|(benchmark, ..)| Some(*benchmark) == name.as_deref());
    let Some((_, _, run)) = chosen else {
        eprintln!("usage: cargo xtask bench NAME");
        for (name, about, _) in BENCHMARKS {
            eprintln!("  {name}: {about}");
        }
        return ExitCode::from(2);
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
