//! `bench`: figures of this machine, all of a table from one run.
//!
//! The benchmarks measure the programs in the kernel, which are always optimised.
//! The rest is built as tests are: optimising it would take minutes and change
//! no figure, because the kernel measures. Where the agent itself is measured, it is
//! built for release.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build::{self, Profile},
    cache::Cache,
    exec, setup, test, workspace,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of a benchmark, and its arguments; without, lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { arguments } = args;
    let cache = Cache::locate()?;
    setup::tools(&cache)?;
    setup::toolchain(&cache)?;
    let profile = match arguments.first() {
        Some(name) if name == "scale" => Profile::Release,
        _ => Profile::Dev,
    };
    let agent = build::agent(&cache, profile)?;
    let mut cargo = workspace::cargo(&cache)?;
    test::environment(&mut cargo, &cache, &agent);
    cargo
        .args(["run", "--package", "proxy-tests", "--bin", "bench", "--"])
        .args(arguments);
    exec::foreground(&mut cargo)
}
