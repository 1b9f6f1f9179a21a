//! `soak`: everything changes under traffic that must not notice.

use anyhow::Result;

use crate::{
    build::{self, Profile},
    cache::Cache,
    exec,
    setup::{self, kubernetes},
    test, workspace,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Duration in minutes
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let cache = Cache::locate()?;
    let control_plane = kubernetes::start(&cache, kubernetes::CONTROL_PLANE);
    setup::tools(&cache)?;
    setup::toolchain(&cache)?;
    let agent = build::agent(&cache, Profile::Dev)?;
    let mut cargo = workspace::cargo(&cache)?;
    test::environment(&mut cargo, &cache, &agent);
    cargo
        .args(["run", "--package", "proxy-tests", "--bin", "soak", "--"])
        .arg(args.minutes.to_string())
        .env("KUBEBUILDER_ASSETS", control_plane.finish()?);
    exec::foreground(&mut cargo)
}
