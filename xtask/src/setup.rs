//! `setup`: everything a fresh machine lacks, each part only if it is missing.
//!
//! Other verbs call the parts they need; `cargo xtask setup` runs those that
//! building and the network tests need, or the ones it is told.

mod bpf_linker;
mod debian;
pub(crate) mod go;
mod kernel;
pub(crate) mod kubernetes;
mod lint_tools;
mod machine;
mod packages;
mod rust_src;
mod rustc;

use anyhow::Result;
use clap::ValueEnum;
pub(crate) use kernel::Kernel;
pub(crate) use lint_tools::cargo_deny;
pub(crate) use machine::mount_point;

use crate::{cache::Cache, version::Version};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these parts [default: toolchain, tools]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Every part
    #[arg(long, conflicts_with = "parts")]
    all: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// Compiler and linker for the BPF target
    Toolchain,
    /// Network tools and kernel mounts that tests, demo and benchmarks use
    Tools,
    /// API server, controller manager, kube-proxy, kubectl and etcd (a long Go build)
    Kubernetes,
    /// cargo-deny
    Lint,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { parts, all } = args;
    let parts = match (all, parts.is_empty()) {
        (true, _) => Part::value_variants(),
        (false, true) => &[Part::Toolchain, Part::Tools],
        (false, false) => parts,
    };
    let cache = Cache::locate()?;
    // First: the others need neither, and it is long.
    let kubernetes = parts
        .contains(&Part::Kubernetes)
        .then(|| kubernetes::start(&cache, kubernetes::ALL));
    for part in parts {
        match part {
            Part::Toolchain => toolchain(&cache)?,
            Part::Tools => tools(&cache)?,
            Part::Lint => drop(cargo_deny(&cache)?),
            Part::Kubernetes => {}
        }
    }
    if let Some(kubernetes) = kubernetes {
        kubernetes.finish()?;
    }
    eprintln!("xtask: set up; the tools are in {}", cache.root().display());
    Ok(())
}

/// Installs what building the agent needs.
pub(crate) fn toolchain(cache: &Cache) -> Result<()> {
    packages::install(cache, packages::BUILD)?;
    let rustc = rustc::Rustc::query()?;
    rust_src::ensure(cache, &rustc)?;
    bpf_linker::ensure(cache, &rustc)
}

/// Installs what running Tandem in network namespaces needs: tools, kernel, mounts.
pub(crate) fn tools(cache: &Cache) -> Result<()> {
    machine::ensure()?;
    packages::install(cache, packages::NETWORK)?;
    packages::bpftool(cache)
}

/// Returns Debian's NGINX, for an image.
pub(crate) fn nginx(cache: &Cache) -> Result<std::path::PathBuf> {
    packages::nginx(cache)
}

/// Installs what running nodes with containers needs.
pub(crate) fn nodes(cache: &Cache) -> Result<()> {
    tools(cache)?;
    packages::install(cache, packages::NODES)
}

/// Installs what running tests in a virtual machine needs, whatever this machine's own
/// kernel has, and returns the kernel for it.
pub(crate) fn virtual_machine(cache: &Cache, kernel: Version) -> Result<Kernel> {
    packages::install(cache, packages::NETWORK)?;
    packages::install(cache, packages::EMULATOR)?;
    packages::bpftool(cache)?;
    Kernel::fetch(cache, kernel)
}

/// The target triple of this machine.
pub(crate) fn host() -> Result<String> {
    Ok(rustc::Rustc::query()?.host)
}
