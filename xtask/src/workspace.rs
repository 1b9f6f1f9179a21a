//! Starts cargo on this workspace, with the environment that the build and
//! the tests read.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::cache::Cache;

/// The folder with the workspace's `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Returns cargo's target folder.
pub(crate) fn target() -> PathBuf {
    let folder = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target"));
    root().join(folder)
}

/// A cargo command that finds the cache's tools. Nothing else is set: a plain
/// `cargo build` must not make cargo build everything anew.
pub(crate) fn cargo(cache: &Cache) -> Result<Command> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.current_dir(root()).env("PATH", path(cache)?);
    // `cargo run` told this process about the package xtask; build scripts
    // would take that for a change.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_a_package) {
            cargo.env_remove(name);
        }
    }
    Ok(cargo)
}

/// `PATH` with the cache's tools first, and the system's folders last for
/// users whose `PATH` has no `ip`, `nft` and `tc`.
fn path(cache: &Cache) -> Result<OsString> {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let folders = [cache.bin()]
        .into_iter()
        .chain(env::split_paths(&inherited))
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    env::join_paths(folders).context("put the cache on PATH")
}

/// Returns whether cargo sets a variable for each package anew.
fn is_of_a_package(variable: &str) -> bool {
    variable.starts_with("CARGO_MANIFEST_") || variable.starts_with("CARGO_PKG_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_not_told_about_this_package() {
        assert!(is_of_a_package("CARGO_MANIFEST_DIR"));
        assert!(is_of_a_package("CARGO_PKG_VERSION_MAJOR"));
        assert!(!is_of_a_package("CARGO_HOME"));
    }
}
