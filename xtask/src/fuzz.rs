//! `fuzz`: packets by chance through the datapath, and what must hold of each.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::{cache::Cache, exec, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Duration in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first sequence's seed, as a run before has printed it; the others follow
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args { seconds, seed } = args;
    let seed = match seed {
        Some(seed) => seed,
        None => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?,
    };
    let cache = Cache::locate()?;
    setup::tools(&cache)?;
    setup::toolchain(&cache)?;
    let mut cargo = workspace::cargo(&cache)?;
    cargo
        .args(["run", "--package", "proxy-tests", "--bin", "fuzz", "--"])
        .args([seconds.to_string(), seed.to_string()]);
    exec::foreground(&mut cargo)
}
