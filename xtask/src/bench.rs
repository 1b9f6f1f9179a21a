//! `bench`: figures, beside those of no proxy and of kube-proxy, all from one
//! run on one machine.

use std::ffi::OsString;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::cache::Cache;
use crate::setup::kubernetes;
use crate::{exec, setup, test, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark, and its arguments; none lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { arguments } = args;
    let cache = Cache::locate()?;
    let kubernetes = kubernetes::start(&cache, kubernetes::ALL);
    setup::tools(&cache)?;
    setup::toolchain(&cache)?;
    let agent = build::agent(&cache, Profile::Release)?;

    let mut cargo = workspace::cargo(&cache)?;
    test::environment(&mut cargo, &cache, &agent);
    cargo
        .env("KUBEBUILDER_ASSETS", kubernetes.finish()?)
        .args(["run", "--quiet", "--release", "--package", "proxy-tests"])
        .args(["--bin", "bench", "--"])
        .args(arguments);
    exec::foreground(&mut cargo)
}
