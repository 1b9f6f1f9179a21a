//! Runs a benchmark and prints its figures.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use proxy_tests::bench::{datapath, inplace, masquerade, scale};

#[derive(Parser)]
#[command(name = "bench", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
}

#[derive(Subcommand)]
enum Benchmark {
    /// Kernel time per packet, by test runs
    Datapath,
    /// Time of the programs under real traffic
    Inplace(inplace::Args),
    /// Connections that are masqueraded to one backend, with real traffic
    Masquerade(masquerade::Args),
    /// An agent of a large cluster, with a made-up API server
    Scale(scale::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().benchmark {
        None => {
            for benchmark in Cli::command().get_subcommands() {
                let about = benchmark.get_about().map(ToString::to_string);
                println!("{}: {}", benchmark.get_name(), about.unwrap_or_default());
            }
            return ExitCode::SUCCESS;
        }
        Some(Benchmark::Datapath) => datapath::run(),
        Some(Benchmark::Inplace(args)) => inplace::run(&args),
        Some(Benchmark::Masquerade(args)) => masquerade::run(&args),
        Some(Benchmark::Scale(args)) => scale::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
