//! `build`: the agent, with the eBPF programs inside.

use std::path::PathBuf;

use anyhow::Result;

use crate::{cache::Cache, exec, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised, as it is released
    #[arg(long)]
    release: bool,
}

/// The cargo profile of the agent.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args { release } = args;
    let cache = Cache::locate()?;
    setup::toolchain(&cache)?;
    let profile = if release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let binary = agent(&cache, profile)?;
    eprintln!("xtask: built {}", binary.display());
    Ok(())
}

/// Builds the agent and returns the binary.
pub(crate) fn agent(cache: &Cache, profile: Profile) -> Result<PathBuf> {
    let mut cargo = workspace::cargo(cache)?;
    cargo.args(["build", "--package", "proxy-agent", "--bin", "proxy-agent"]);
    let folder = match profile {
        Profile::Dev => {
            // With the features that the tests want of its libraries, so that
            // those are not built once more for the demo.
            cargo.args(["--package", "proxy-tests"]);
            "debug"
        }
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    exec::foreground(&mut cargo)?;
    Ok(workspace::target().join(folder).join("proxy-agent"))
}

/// Builds the released agent without any shared library, for an image that
/// has none, and returns the binary.
pub(crate) fn static_agent(cache: &Cache) -> Result<PathBuf> {
    let target = setup::host()?;
    let mut cargo = workspace::cargo(cache)?;
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "--package", "proxy-agent", "--bin", "proxy-agent"])
        // Named, so that the flags do not hold for build scripts and macros.
        .args(["--release", "--target", &target]);
    exec::foreground(&mut cargo)?;
    Ok(workspace::target().join(target).join("release/proxy-agent"))
}
