//! Builds the eBPF programs and embeds them in the agent.

use std::{env, path::PathBuf};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    // SAFETY: a build script's main function; no other thread runs yet.
    unsafe {
        // The standard library is built for the BPF target, which stable
        // compilers allow only so.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        if let Some(linker) = bpf_linker() {
            env::set_var("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
        }
    }
    let features: &[&str] = if env::var_os("CARGO_FEATURE_TEST_PROGRAMS").is_some() {
        &["test-programs"]
    } else {
        &[]
    };
    let version = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    aya_build::build_ebpf(
        [Package {
            name: "proxy-ebpf",
            root_dir: "../proxy-ebpf",
            no_default_features: false,
            features,
        }],
        Toolchain::Custom(&version),
    )
    .context("build the eBPF programs (`cargo xtask setup` installs what that needs)")
}

/// The bpf-linker that `cargo xtask setup` built; else cargo looks in `PATH`.
fn bpf_linker() -> Option<PathBuf> {
    println!("cargo:rerun-if-env-changed=TANDEM_CACHE");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER");
    if env::var_os("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER").is_some() {
        return None;
    }
    let cache = env::var_os("TANDEM_CACHE").map(PathBuf::from).or_else(|| {
        let base = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
        Some(base.join("tandem"))
    })?;
    let linker = cache.join("bin/bpf-linker");
    linker.exists().then_some(linker)
}
