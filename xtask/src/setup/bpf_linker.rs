//! bpf-linker, built against the LLVM library that comes with rustc, so that
//! no LLVM has to be installed and both always agree on the bitcode format.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::rustc::Rustc;
use crate::{
    cache::{self, Cache},
    exec, workspace,
};

const VERSION: &str = "0.13.0";
/// The LLVM versions that bpf-linker can be built for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

pub(super) fn ensure(cache: &Cache, rustc: &Rustc) -> Result<()> {
    // It is bound to one LLVM library, hence to one compiler.
    let name = format!("bpf-linker-{VERSION}-rust-{}", rustc.version);
    let program = cache.folder(&name).join("bin/bpf-linker");
    if program.exists() && !runs(&program) {
        // The compiler it was built for has moved.
        cache::remove(&cache.folder(&name))?;
    }
    if !program.exists() {
        let label = format!("build of bpf-linker {VERSION}");
        exec::timed(&label, || {
            cache.assemble(&name, |folder| build(cache, rustc, folder))
        })?;
        ensure!(runs(&program), "{} does not run", program.display());
    }
    cache.publish(&program)
}

fn build(cache: &Cache, rustc: &Rustc, folder: &Path) -> Result<()> {
    let major = rustc.llvm.major;
    ensure!(
        LLVM.contains(&major),
        "rustc {} is built on LLVM {major}, bpf-linker {VERSION} knows {} to {}",
        rustc.version,
        LLVM.start(),
        LLVM.end()
    );
    // llvm-sys looks for PREFIX/lib/libLLVM.so.
    let prefix = folder.join("llvm");
    let llvm = prefix.join("lib");
    cache::link(&rustc.llvm_library()?, &llvm.join("libLLVM.so"))?;
    let flags = format!(
        "-C link-arg=-Wl,-rpath,{} -L native={}",
        rustc.sysroot.join("lib").display(),
        llvm.display()
    );
    let target = folder.join("target");

    let mut cargo = workspace::cargo(cache)?;
    cargo
        // Elsewhere: the flags of this workspace are not meant for it.
        .current_dir(folder)
        .env("LLVM_PREFIX", &prefix)
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{major}"))
        .arg("--root")
        .arg(folder)
        .arg("--target-dir")
        .arg(&target);
    exec::step(&cache.log("bpf-linker"), &mut cargo)?;
    cache::remove(&target)?;
    cache::remove(&prefix).context("clean up after the build")
}

fn runs(program: &Path) -> bool {
    exec::output(Command::new(program).arg("--version")).is_ok()
}
