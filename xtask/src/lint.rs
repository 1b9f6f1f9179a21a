//! `lint`: what must hold before a change is merged, tests aside.

mod imports;
mod parity;

use std::process::Command;

use anyhow::Result;

use crate::{cache::Cache, exec, setup, workspace};

pub(crate) fn run() -> Result<()> {
    let cache = Cache::locate()?;
    setup::toolchain(&cache)?;
    exec::timed("format", || format(&cache))?;
    exec::timed("clippy, host", || clippy_host(&cache))?;
    exec::timed("clippy, BPF", || clippy_bpf(&cache))?;
    exec::timed("documentation", || documentation(&cache))?;
    exec::timed("imports", || imports::check(workspace::root()))?;
    exec::timed("parity", || parity::check(workspace::root()))?;
    dependencies(&cache)
}

fn format(cache: &Cache) -> Result<()> {
    exec::foreground(workspace::cargo(cache)?.args(["fmt", "--all", "--check"]))
}

fn clippy_host(cache: &Cache) -> Result<()> {
    let mut cargo = workspace::cargo(cache)?;
    cargo.args(["clippy", "--quiet", "--all-targets"]);
    host_crates(&mut cargo);
    cargo.args(["--", "-D", "warnings"]);
    exec::foreground(&mut cargo)
}

fn clippy_bpf(cache: &Cache) -> Result<()> {
    let mut cargo = workspace::cargo(cache)?;
    cargo
        // The BPF target needs a `core` built on the spot: an unstable flag.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["clippy", "--quiet", "--package", "proxy-ebpf", "--all-features"])
        .args(["--release", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(workspace::target().join("clippy-bpf"))
        .args(["--", "-D", "warnings"]);
    exec::foreground(&mut cargo)
}

fn documentation(cache: &Cache) -> Result<()> {
    let mut cargo = workspace::cargo(cache)?;
    // The pages have private items, so links to them lead somewhere.
    let flags = "-D warnings -A rustdoc::private-intra-doc-links";
    cargo.env("RUSTDOCFLAGS", flags).args([
        "doc",
        "--quiet",
        "--no-deps",
        "--document-private-items",
    ]);
    host_crates(&mut cargo);
    exec::foreground(&mut cargo)
}

fn host_crates(cargo: &mut Command) {
    cargo.args(["--workspace", "--exclude", "proxy-ebpf"]);
}

fn dependencies(cache: &Cache) -> Result<()> {
    let program = setup::cargo_deny(cache)?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .current_dir(workspace::root())
            .args(["--workspace", "--all-features", "--log-level", "error"])
            .args(arguments);
        command
    };
    exec::timed("dependencies", || {
        exec::foreground(&mut deny(&["check", "bans", "licenses", "sources"]))
    })?;
    // The advisory database is a git repository, which not every machine
    // reaches that reaches the package registries.
    if exec::output(&mut deny(&["fetch", "db"])).is_err() {
        eprintln!("xtask: advisories: skipped, their database cannot be fetched here");
        return Ok(());
    }
    exec::timed("advisories", || {
        exec::foreground(&mut deny(&["--offline", "check", "advisories"]))
    })
}
