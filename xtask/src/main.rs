//! `cargo xtask VERB`: everything that is done to this repository, the same
//! way by a developer and by CI.
//!
//! One file per verb. What the verbs share: [`exec`] runs other programs,
//! [`cache`] knows where downloaded and built tools are, [`workspace`] starts
//! cargo with the environment the build and the tests expect.

mod bench;
mod build;
mod cache;
mod clean;
mod cluster;
mod demo;
mod e2e;
mod exec;
mod fuzz;
mod image;
mod libraries;
mod lint;
mod setup;
mod soak;
mod test;
mod version;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need; does nothing when it is there
    Setup(setup::Args),
    /// Build proxy-agent, with the eBPF programs inside
    Build(build::Args),
    /// Run unit tests, then the privileged tests (as root)
    Test(test::Args),
    /// Check formatting, clippy (host and BPF), docs and dependencies
    Lint,
    /// Show Tandem at work in network namespaces on this machine
    Demo(demo::Args),
    /// Measure what a packet costs on this machine
    Bench(bench::Args),
    /// Change everything for a while, under traffic that must not notice
    Soak(soak::Args),
    /// Send packets by chance through the datapath and check what becomes of each
    Fuzz(fuzz::Args),
    /// A Kubernetes cluster of several nodes on this machine
    Cluster(cluster::Args),
    /// Run Kubernetes' own tests of Services against Tandem, on real nodes
    E2e(e2e::Args),
    /// Build the container image
    Image(image::Args),
    /// Remove build output and what an aborted run left on the machine
    Clean(clean::Args),
}

fn main() -> ExitCode {
    let result = match &Cli::parse().verb {
        Verb::Setup(args) => setup::run(args),
        Verb::Build(args) => build::run(args),
        Verb::Test(args) => test::run(args),
        Verb::Lint => lint::run(),
        Verb::Demo(args) => demo::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Soak(args) => soak::run(args),
        Verb::Fuzz(args) => fuzz::run(args),
        Verb::Cluster(args) => cluster::run(args),
        Verb::E2e(args) => e2e::run(args),
        Verb::Image(args) => image::run(args),
        Verb::Clean(args) => clean::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
