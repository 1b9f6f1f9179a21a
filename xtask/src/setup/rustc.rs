//! The compiler in use, as it describes itself.

use std::{env, ffi::OsString, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{exec, version::Version, workspace};

pub(super) struct Rustc {
    pub(super) version: Version,
    /// Version of the LLVM that the compiler is built on.
    pub(super) llvm: Version,
    pub(super) sysroot: PathBuf,
    /// Its target triple.
    pub(super) host: String,
}

impl Rustc {
    pub(super) fn query() -> Result<Self> {
        let description = exec::output(rustc().arg("-vV"))?;
        let (version, llvm, host) = parse(&description)
            .with_context(|| format!("rustc -vV names no release: {description}"))?;
        let sysroot = PathBuf::from(exec::output(rustc().args(["--print", "sysroot"]))?);
        Ok(Self {
            version,
            llvm,
            sysroot,
            host: host.to_owned(),
        })
    }

    /// The shared LLVM library that comes with the compiler.
    pub(super) fn llvm_library(&self) -> Result<PathBuf> {
        let folder = self.sysroot.join("lib");
        let mut found: Vec<_> = fs::read_dir(&folder)
            .with_context(|| format!("read {}", folder.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| {
                file.file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| is_llvm_library(name, self.llvm))
            })
            .collect();
        found.sort();
        let Some(library) = found.pop() else {
            bail!(
                "no libLLVM.so of LLVM {} in {}: use a Rust toolchain of rustup's",
                self.llvm.major,
                folder.display()
            );
        };
        Ok(library)
    }
}

/// The same compiler that cargo uses here.
fn rustc() -> Command {
    let program = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let mut rustc = Command::new(program);
    rustc.current_dir(workspace::root());
    rustc
}

/// Release, LLVM version and host, from `rustc -vV`.
fn parse(description: &str) -> Option<(Version, Version, &str)> {
    let field = |name| description.lines().find_map(|line| line.strip_prefix(name));
    Some((
        Version::find(field("release: ")?)?,
        Version::find(field("LLVM version: ")?)?,
        field("host: ")?,
    ))
}

/// Such as `libLLVM.so.22.1-rust-1.95.0-stable`; not the linker script
/// `libLLVM-22-rust-1.95.0-stable.so` beside it.
fn is_llvm_library(name: &str, llvm: Version) -> bool {
    name.strip_prefix("libLLVM.so.")
        .and_then(Version::find)
        .is_some_and(|version| version.major == llvm.major)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn reads_the_verbose_version() {
        let description = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
            host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2";
        let expected = (
            Version::new(1, 95, 0),
            Version::new(22, 1, 2),
            "x86_64-unknown-linux-gnu",
        );
        assert_eq!(parse(description), Some(expected));
    }

    #[rstest]
    #[case::library("libLLVM.so.22.1-rust-1.95.0-stable", true)]
    #[case::linker_script("libLLVM-22-rust-1.95.0-stable.so", false)]
    #[case::another_llvm("libLLVM.so.21.1-rust-1.93.0-stable", false)]
    #[case::another_library("librustc_driver-6108105cd7e839cf.so", false)]
    fn knows_the_library_by_its_name(#[case] name: &str, #[case] expected: bool) {
        assert_eq!(is_llvm_library(name, Version::new(22, 1, 2)), expected);
    }
}
