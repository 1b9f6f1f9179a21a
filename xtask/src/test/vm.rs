//! The privileged tests under another kernel: an emulated machine boots it,
//! with a root file system that has this machine's tools and the test programs
//! in memory, and tells on its serial port how each of them ended.
//!
//! Emulation in software, because it works on every machine; it is slow.

mod archive;
mod machine;
mod programs;
mod report;
mod root;

use std::{ffi::OsString, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cache::{self, Cache},
    exec,
    setup::Kernel,
    workspace,
};

/// Runs the tests that `cargo test` would run, under `kernel`.
pub(super) fn run(
    cache: &Cache,
    kernel: &Kernel,
    agent: &Path,
    cargo: &mut Command,
    arguments: &[OsString],
) -> Result<()> {
    let folder = workspace::target().join("vm");
    cache::create(&folder)?;
    let programs = programs::build(cargo, arguments)?;
    ensure!(!programs.is_empty(), "these arguments select no test");
    // Beside those of runs with another kernel.
    let file = folder.join(format!("root-{}.cpio", kernel.release));
    exec::timed("root file system", || {
        root::Root {
            cache,
            kernel,
            agent,
            programs: &programs,
            arguments,
        }
        .write(&file)
    })?;
    let console = folder.join(format!("console-{}.log", kernel.release));
    let report = machine::run(kernel, &file, &console, programs.len());
    fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    report?.conclude(&kernel.release)
}
