//! `test`: unit tests as they are, then the tests of proxy-tests, which need
//! root, a kernel with BPF, and for some of them a Kubernetes control plane.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::{self, Profile};
use crate::cache::Cache;
use crate::setup::kubernetes;
use crate::{exec, setup, workspace};

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
    /// Passed to the test binaries, such as a test's name or --test-threads=1
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args {
        unit,
        net,
        kubernetes,
        ref arguments,
    } = args;
    let all = !(unit || net || kubernetes);
    let (unit, net, kubernetes) = (unit || all, net || all, kubernetes || all);

    let cache = Cache::locate()?;
    let targets = Targets::of_proxy_tests()?;
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
    if net {
        let agent = build::agent(&cache, Profile::Dev)?;
        let mut cargo = privileged(&cache, &agent)?;
        targets.net(&mut cargo);
        cargo.arg("--").args(arguments);
        exec::foreground(&mut cargo)?;
    }
    if let Some(control_plane) = control_plane {
        let agent = build::agent(&cache, Profile::Dev)?;
        let mut cargo = privileged(&cache, &agent)?;
        cargo.env("KUBEBUILDER_ASSETS", control_plane.finish()?);
        targets.kubernetes(&mut cargo);
        cargo.arg("--").args(arguments);
        exec::foreground(&mut cargo)?;
    }
    Ok(())
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

/// The integration tests of proxy-tests, by what they need.
#[derive(Debug, PartialEq)]
struct Targets {
    net: Vec<String>,
    kubernetes: Vec<String>,
}

impl Targets {
    fn of_proxy_tests() -> Result<Self> {
        let folder = workspace::root().join("proxy-tests/tests");
        if !folder.exists() {
            return Ok(Self::sort([]));
        }
        let entries = fs::read_dir(&folder)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("read {}", folder.display()))?;
        Ok(Self::sort(entries.iter().filter_map(|entry| {
            let path = entry.path();
            let is_target = if path.is_dir() {
                path.join("main.rs").exists()
            } else {
                path.extension().is_some_and(|ending| ending == "rs")
            };
            is_target.then(|| path.file_stem()?.to_str().map(str::to_owned))?
        })))
    }

    fn sort(names: impl IntoIterator<Item = String>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        let (kubernetes, net) = names
            .into_iter()
            .partition(|name| name.starts_with("kubernetes_"));
        Self { net, kubernetes }
    }

    /// Selects the tests in network namespaces; the crate's own unit tests
    /// and benchmarks' helpers go with them.
    fn net(&self, cargo: &mut Command) {
        cargo.args(["--lib", "--bins"]);
        select(cargo, &self.net);
    }

    fn kubernetes(&self, cargo: &mut Command) {
        select(cargo, &self.kubernetes);
    }
}

fn select(cargo: &mut Command, names: &[String]) {
    for name in names {
        cargo.args(["--test", name]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart_by_name() {
        let names = ["kubernetes_rollout", "udp", "affinity"].map(str::to_owned);
        let expected = Targets {
            net: vec!["affinity".to_owned(), "udp".to_owned()],
            kubernetes: vec!["kubernetes_rollout".to_owned()],
        };
        assert_eq!(Targets::sort(names), expected);
    }
}
