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
    let Some(name) = std::env::args().nth(1) else {
        for (name, about, _) in BENCHMARKS {
            println!("{name}: {about}");
        }
        return ExitCode::SUCCESS;
    };
    let chosen = BENCHMARKS.iter().find(|(benchmark, ..)| *benchmark == name);
    let Some((_, _, run)) = chosen else {
        eprintln!("error: there is no benchmark {name}; without a name all are listed");
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
