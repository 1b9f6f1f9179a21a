//! `test`: unit tests as they are, then the tests of proxy-tests, which need
//! root, a kernel with BPF, and for some of them a Kubernetes control plane;
//! or those of proxy-tests under another kernel, in a virtual machine.

mod targets;
mod vm;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build::{self, Profile};
use crate::cache::Cache;
use crate::setup::kubernetes;
use crate::version::Version;
use crate::{exec, setup, workspace};

use targets::Targets;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Unit tests of all crates
    #[arg(long)]
    unit: bool,
    /// Tests in network namespaces
    #[arg(long)]
    net: bool,
    /// Tests against a real Kubernetes API server
    #[arg(long)]
    kubernetes: bool,
    /// Only the files of proxy-tests/tests whose names contain this; repeatable
    #[arg(long, value_name = "PART", conflicts_with = "unit")]
    file: Vec<String>,
    /// Tests in network namespaces under another kernel, such as 6.1, in an
    /// emulated machine: slow
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["unit", "kubernetes"], value_parser = kernel)]
    kernel: Option<Version>,
    /// Passed to the test binaries, such as a test's name or --test-threads=1
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args {
        unit,
        net,
        kubernetes,
        ref file,
        kernel,
        ref arguments,
    } = args;
    let cache = Cache::locate()?;
    let targets = Targets::of_proxy_tests(file)?;
    if let Some(kernel) = kernel {
        return under(&cache, kernel, &targets, file.is_empty(), arguments);
    }
    let all = !(unit || net || kubernetes);
    let unit = unit || (all && file.is_empty());
    let (net, kubernetes) = (net || all, kubernetes || all);

    // First, because it is long and what follows needs none of it.
    let control_plane = (kubernetes && !targets.kubernetes.is_empty())
        .then(|| kubernetes::start(&cache, kubernetes::CONTROL_PLANE));
    if net || kubernetes {
        setup::tools(&cache)?;
    }
    setup::toolchain(&cache)?;

    if unit {
        let mut cargo = workspace::cargo(&cache)?;
        cargo.args(["test", "--no-fail-fast", "--"]).args(arguments);
        exec::foreground(&mut cargo)?;
    }
    if net && (file.is_empty() || !targets.net.is_empty()) {
        let agent = build::agent(&cache, Profile::Dev)?;
        let mut cargo = privileged(&cache, &agent)?;
        select_net(&mut cargo, &targets, file.is_empty());
        cargo.arg("--").args(arguments);
        exec::foreground(&mut cargo)?;
    }
    if let Some(control_plane) = control_plane {
        let agent = build::agent(&cache, Profile::Dev)?;
        let mut cargo = privileged(&cache, &agent)?;
        cargo.env("KUBEBUILDER_ASSETS", control_plane.finish()?);
        targets::select(&mut cargo, &targets.kubernetes);
        cargo.arg("--").args(arguments);
        exec::foreground(&mut cargo)?;
    }
    Ok(())
}

/// Runs the tests in network namespaces under another kernel.
fn under(
    cache: &Cache,
    kernel: Version,
    targets: &Targets,
    all: bool,
    arguments: &[OsString],
) -> Result<()> {
    ensure!(
        all || !targets.net.is_empty(),
        "tests against an API server run under the machine's own kernel only"
    );
    setup::toolchain(cache)?;
    let kernel = setup::virtual_machine(cache, kernel)?;
    let agent = build::agent(cache, Profile::Dev)?;
    let mut cargo = privileged(cache, &agent)?;
    select_net(&mut cargo, targets, all);
    vm::run(cache, &kernel, &agent, &mut cargo, arguments)
}

/// `cargo test` of proxy-tests.
fn privileged(cache: &Cache, agent: &Path) -> Result<Command> {
    let mut cargo = workspace::cargo(cache)?;
    environment(&mut cargo, cache, agent);
    cargo.args(["test", "--package", "proxy-tests", "--no-fail-fast"]);
    Ok(cargo)
}

/// What proxy-tests reads from its environment.
pub(crate) fn environment(cargo: &mut Command, cache: &Cache, agent: &Path) {
    cargo
        .env("PROXY_AGENT_BIN", agent)
        .env("TANDEM_TOOLS", cache.bin());
}

/// Selects the tests in network namespaces; with `all` of them go the crate's
/// own unit tests and benchmarks' helpers.
fn select_net(cargo: &mut Command, targets: &Targets, all: bool) {
    if all {
        cargo.args(["--lib", "--bins"]);
    }
    targets::select(cargo, &targets.net);
}

/// A kernel on the command line.
fn kernel(text: &str) -> Result<Version> {
    Version::find(text).with_context(|| format!("{text} is no version of Linux, such as 6.1"))
}
