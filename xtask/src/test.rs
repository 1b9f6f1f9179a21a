//! `test`: unit tests as they are, then the tests of proxy-tests, which need
//! root, a kernel with BPF, and for some of them a Kubernetes control plane;
//! or those of proxy-tests under another kernel, in a virtual machine.

mod vm;

use std::{ffi::OsString, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    cache::Cache,
    exec,
    setup::{self, kubernetes},
    version::Version,
    workspace,
};

#[derive(clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one flag for each kind of test"
)]
pub(crate) struct Args {
    /// Unit tests of all crates
    #[arg(long)]
    unit: bool,
    /// Packets through the programs, by test runs
    #[arg(long)]
    packets: bool,
    /// Tests with traffic in network namespaces
    #[arg(long)]
    net: bool,
    /// Tests against a real Kubernetes API server
    #[arg(long)]
    kubernetes: bool,
    /// Packet and network tests under another kernel, such as 6.1, in an
    /// emulated machine: slow
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["unit", "kubernetes"], value_parser = kernel)]
    kernel: Option<Version>,
    /// Passed to the test programs, such as --test-threads=1, a file's name and
    /// `::`, or a test's name
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args {
        unit,
        packets,
        net,
        kubernetes,
        kernel,
        ref arguments,
    } = args;
    let cache = Cache::locate()?;
    if let Some(kernel) = kernel {
        let all = !(packets || net);
        return under(&cache, kernel, packets || all, net || all, arguments);
    }
    let all = !(unit || packets || net || kubernetes);

    // First, because it is long and what follows needs none of it.
    let control_plane =
        (kubernetes || all).then(|| kubernetes::start(&cache, kubernetes::CONTROL_PLANE));
    if packets || net || kubernetes || all {
        setup::tools(&cache)?;
    }
    setup::toolchain(&cache)?;

    if unit || all {
        let mut cargo = workspace::cargo(&cache)?;
        cargo.args(["test", "--no-fail-fast", "--"]).args(arguments);
        exec::foreground(&mut cargo)?;
    }
    if packets || net || all {
        let agent = build::agent(&cache, Profile::Dev)?;
        let mut cargo = privileged(&cache, &agent)?;
        select(&mut cargo, packets || all, net || all);
        cargo.arg("--").args(arguments);
        exec::foreground(&mut cargo)?;
    }
    if let Some(control_plane) = control_plane {
        let agent = build::agent(&cache, Profile::Dev)?;
        let mut cargo = privileged(&cache, &agent)?;
        cargo.env("KUBEBUILDER_ASSETS", control_plane.finish()?);
        cargo.args(["--test", "kubernetes", "--"]).args(arguments);
        exec::foreground(&mut cargo)?;
    }
    Ok(())
}

/// Runs packet and network tests under another kernel.
fn under(
    cache: &Cache,
    kernel: Version,
    packets: bool,
    net: bool,
    arguments: &[OsString],
) -> Result<()> {
    setup::toolchain(cache)?;
    let kernel = setup::virtual_machine(cache, kernel)?;
    let agent = build::agent(cache, Profile::Dev)?;
    let mut cargo = privileged(cache, &agent)?;
    select(&mut cargo, packets, net);
    vm::run(cache, &kernel, &agent, &mut cargo, arguments)
}

/// `cargo test` of proxy-tests.
fn privileged(cache: &Cache, agent: &Path) -> Result<Command> {
    let mut cargo = workspace::cargo(cache)?;
    environment(&mut cargo, cache, agent);
    cargo.args(["test", "--package", "proxy-tests", "--no-fail-fast"]);
    Ok(cargo)
}

/// Sets the environment variables that proxy-tests reads.
pub(crate) fn environment(cargo: &mut Command, cache: &Cache, agent: &Path) {
    cargo
        .env("PROXY_AGENT_BIN", agent)
        .env("TANDEM_TOOLS", cache.bin());
}

/// Selects packet tests, network tests and, with both of them, the crate's own
/// unit tests.
fn select(cargo: &mut Command, packets: bool, net: bool) {
    if packets {
        cargo.args(["--test", "packets"]);
    }
    if net {
        cargo.args(["--test", "net"]);
    }
    if packets && net {
        cargo.args(["--lib", "--bins"]);
    }
}

/// A kernel on the command line.
fn kernel(text: &str) -> Result<Version> {
    Version::find(text).with_context(|| format!("{text} is no version of Linux, such as 6.1"))
}
