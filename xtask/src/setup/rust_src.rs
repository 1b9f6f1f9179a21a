//! The source of the standard library, in the compiler's own folder: the BPF
//! target has no prebuilt `core`, so cargo builds it (`-Z build-std=core`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{debian, rustc::Rustc};
use crate::{
    cache::{self, Cache},
    exec, workspace,
};

/// The Debian suite that keeps several Rust releases side by side.
const DEBIAN_SUITE: &str = "trixie-backports";

type Source = fn(&Cache, &Rustc) -> Result<()>;

/// The sources to try, in this order.
const SOURCES: [(&str, Source); 3] = [
    ("rustup", from_rustup),
    ("Debian", from_debian),
    ("archive", from_archive),
];

pub(super) fn ensure(cache: &Cache, rustc: &Rustc) -> Result<()> {
    if is_complete(rustc) {
        return Ok(());
    }
    let _lock = cache.lock("rust-src")?;
    if is_complete(rustc) {
        return Ok(());
    }
    exec::timed(&format!("source of Rust {}", rustc.version), || {
        let mut failures = Vec::new();
        for (name, source) in SOURCES {
            match source(cache, rustc) {
                Ok(()) if is_complete(rustc) => return Ok(()),
                Ok(()) => failures.push(format!("{name}: incomplete")),
                Err(error) => failures.push(format!("{name}: {error:#}")),
            }
        }
        bail!(
            "put the library source of Rust {} into {}; nowhere to get it from: {}",
            rustc.version,
            library(rustc).display(),
            failures.join("; ")
        )
    })
}

/// Returns the folder in which cargo looks for it.
fn library(rustc: &Rustc) -> PathBuf {
    rustc.sysroot.join("lib/rustlib/src/rust/library")
}

fn is_complete(rustc: &Rustc) -> bool {
    let library = library(rustc);
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

fn from_rustup(cache: &Cache, _rustc: &Rustc) -> Result<()> {
    ensure!(exec::find("rustup").is_some(), "not installed");
    let mut rustup = Command::new("rustup");
    rustup
        .current_dir(workspace::root())
        .args(["component", "add", "rust-src"]);
    exec::step(&cache.log("rust-src"), &mut rustup)
}

fn from_debian(cache: &Cache, rustc: &Rustc) -> Result<()> {
    let partial = cache.folder("rust-src.partial");
    let release = rustc.version.to_string();
    let wanted = |version: &str| version.split('+').next() == Some(&release);
    debian::unpack(cache, DEBIAN_SUITE, "rust-src", wanted, &partial)?;
    let unpacked = partial.join(format!("usr/src/rustc-{release}/library"));
    install(cache, &unpacked, rustc)?;
    cache::remove(&partial)
}

/// An archive beside the checkout, for machines that reach neither of the others.
fn from_archive(cache: &Cache, rustc: &Rustc) -> Result<()> {
    let archive = workspace::root().join(format!(
        "../shared/toolchain/rust-src-{}-library.tar.xz",
        rustc.version
    ));
    ensure!(archive.is_file(), "none");
    let partial = cache.folder("rust-src.partial");
    cache::remove(&partial)?;
    cache::create(&partial)?;
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(&archive).arg("-C").arg(&partial);
    exec::step(&cache.log("rust-src"), &mut tar)?;
    install(cache, &partial.join("library"), rustc)?;
    cache::remove(&partial)
}

/// Copies `unpacked` into the compiler's folder, complete or not at all.
fn install(cache: &Cache, unpacked: &Path, rustc: &Rustc) -> Result<()> {
    let library = library(rustc);
    let aside = library.with_extension("partial");
    cache::remove(&aside)?;
    cache::remove(&library)?;
    cache::create(&aside)?;
    let mut copy = Command::new("cp");
    copy.arg("-RT").arg(unpacked).arg(&aside);
    exec::step(&cache.log("rust-src"), &mut copy)?;
    fs::rename(&aside, &library).with_context(|| format!("create {}", library.display()))
}
