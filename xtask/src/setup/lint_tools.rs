//! Tools that only `lint` runs.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cache::{self, Cache},
    exec, workspace,
};

const CARGO_DENY: &str = "0.20.2";

/// Builds cargo-deny, unless it is there, and returns the program.
pub(crate) fn cargo_deny(cache: &Cache) -> Result<PathBuf> {
    let name = format!("cargo-deny-{CARGO_DENY}");
    let program = cache.folder(&name).join("bin/cargo-deny");
    if !program.exists() {
        exec::timed(&format!("build of cargo-deny {CARGO_DENY}"), || {
            cache.assemble(&name, |folder| {
                let target = folder.join("target");
                let mut cargo = workspace::cargo(cache)?;
                cargo
                    .current_dir(folder)
                    .env_remove("RUSTFLAGS")
                    // It runs for two seconds: as released, it would build
                    // for five minutes.
                    .env("CARGO_PROFILE_RELEASE_LTO", "off")
                    .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
                    .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
                    .args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked"])
                    .arg("--root")
                    .arg(folder)
                    .arg("--target-dir")
                    .arg(&target);
                exec::step(&cache.log("cargo-deny"), &mut cargo)?;
                cache::remove(&target)
            })
        })?;
    }
    cache.publish(&program)?;
    Ok(program)
}
