//! Sends packets by chance through the datapath for as many seconds as the first
//! argument says, from the seed on that the second one is.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use proxy_tests::fuzz;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |what: &'static str| {
        let argument = arguments.next().context(what)?;
        argument
            .parse::<u64>()
            .with_context(|| format!("{what}: {argument}"))
    };
    let (seconds, seed) = (number("seconds")?, number("a seed")?);
    println!("seed {seed}, {seconds} s");
    Ok(match fuzz::run(seed, Duration::from_secs(seconds)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            eprintln!("kept as {}", failure.keep()?.display());
            ExitCode::FAILURE
        }
    })
}
