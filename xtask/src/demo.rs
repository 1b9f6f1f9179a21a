//! `demo`: Tandem at work in network namespaces on this machine.

use std::ffi::OsString;

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
    /// Leave everything up, to look around in
    #[arg(long)]
    keep: bool,
    /// Against a real Kubernetes API server instead of manifests
    #[arg(long)]
    kubernetes: bool,
    /// Passed to the demo
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args {
        keep,
        kubernetes,
        ref arguments,
    } = args;
    let cache = Cache::locate()?;
    let control_plane = kubernetes.then(|| kubernetes::start(&cache, kubernetes::CONTROL_PLANE));
    setup::tools(&cache)?;
    setup::toolchain(&cache)?;
    let agent = build::agent(&cache, Profile::Dev)?;

    let mut cargo = workspace::cargo(&cache)?;
    test::environment(&mut cargo, &cache, &agent);
    cargo.args(["run", "--package", "proxy-tests", "--bin", "demo", "--"]);
    if keep {
        cargo.arg("--keep");
    }
    if let Some(control_plane) = control_plane {
        cargo.arg("--kubernetes");
        cargo.env("KUBEBUILDER_ASSETS", control_plane.finish()?);
    }
    exec::foreground(cargo.args(arguments))
}
