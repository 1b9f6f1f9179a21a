//! Programs of the distribution: installed with apt when one is missing.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{debian, machine};
use crate::{cache::Cache, exec, version::Version};

/// A program, and the Debian package that has it.
pub(super) struct Package {
    program: &'static str,
    package: &'static str,
}

const fn package(program: &'static str, package: &'static str) -> Package {
    Package { program, package }
}

/// For building the agent and bpf-linker.
pub(super) const BUILD: &[Package] = &[
    package("cc", "gcc"),
    package("c++", "g++"),
    package("xz", "xz-utils"),
];

/// For tests, demo and benchmarks.
pub(super) const NETWORK: &[Package] = &[
    package("conntrack", "conntrack"),
    package("curl", "curl"),
    package("ethtool", "ethtool"),
    package("ip", "iproute2"),
    package("iptables", "iptables"),
    package("nft", "nftables"),
    package("nice", "coreutils"),
    package("ping", "iputils-ping"),
    package("setpriv", "util-linux"),
    package("tc", "iproute2"),
    package("tcpdump", "tcpdump"),
    package("wg", "wireguard-tools"),
];

/// For nodes with containers. The plugins of container networking are not on
/// anybody's `PATH`.
pub(super) const NODES: &[Package] = &[
    package("bash", "bash"),
    package("busybox", "busybox-static"),
    package("dig", "bind9-dnsutils"),
    package("ipset", "ipset"),
    package("jq", "jq"),
    package("ldd", "libc-bin"),
    package("nc", "netcat-openbsd"),
    package("nsenter", "util-linux"),
    package("openssl", "openssl"),
    package("runc", "runc"),
    package("socat", "socat"),
    package("strip", "binutils"),
    package("wget", "wget"),
    package("/usr/lib/cni/ptp", "containernetworking-plugins"),
];

/// For a virtual machine with another kernel.
pub(super) const EMULATOR: &[Package] = &[
    package("busybox", "busybox-static"),
    package("depmod", "kmod"),
    package("ldd", "libc-bin"),
    package("qemu-system-x86_64", "qemu-system-x86"),
    package("strip", "binutils"),
];

/// The first bpftool that lists tcx links.
const BPFTOOL: Version = Version::new(7, 3, 0);

/// Installs the packages of programs that are missing.
pub(super) fn install(cache: &Cache, packages: &[Package]) -> Result<()> {
    let names = missing(packages, |program| exec::find(program).is_some());
    if names.is_empty() {
        return Ok(());
    }
    let wanted = names.join(" ");
    if exec::find("apt-get").is_none() {
        bail!("these are missing and there is no apt to install them: {wanted}");
    }
    machine::require_root(&format!("to install {wanted}"))?;
    let _lock = cache.lock("apt")?;
    exec::timed(&format!("installation of {wanted}"), || {
        let log = cache.log("apt");
        exec::step(&log, Command::new("apt-get").arg("update"))?;
        let mut install = Command::new("apt-get");
        install
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&names);
        exec::step(&log, &mut install)
    })
}

/// Puts a bpftool into the cache's `bin` that knows tcx: the machine's own or,
/// where that is too old, the one of Debian's backports.
pub(super) fn bpftool(cache: &Cache) -> Result<()> {
    let published = cache.bin().join("bpftool");
    if is_new_enough(&published) {
        return Ok(());
    }
    let installed = env::var_os("PATH")
        .into_iter()
        .chain(["/usr/local/sbin:/usr/sbin:/sbin".into()])
        .flat_map(|path| env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("bpftool"))
        .find(|file| *file != published && is_new_enough(file));
    if let Some(installed) = installed {
        return cache.publish(&installed);
    }
    exec::timed("bpftool of Debian's backports", || {
        let _lock = cache.lock("bpftool")?;
        let folder = cache.folder("bpftool");
        let suite = format!("{}-backports", debian::codename()?);
        debian::unpack(cache, &suite, "bpftool", |_| true, &folder)?;
        let program = folder.join("usr/sbin/bpftool");
        if !is_new_enough(&program) {
            bail!("{} is older than {BPFTOOL}", program.display());
        }
        cache.publish(&program)
    })
    .with_context(|| format!("install bpftool {BPFTOOL} or newer"))
}

/// Returns NGINX, which is not installed: its package would start it.
pub(super) fn nginx(cache: &Cache) -> Result<PathBuf> {
    let _lock = cache.lock("nginx")?;
    let folder = cache.folder("nginx");
    let program = folder.join("usr/sbin/nginx");
    if !program.exists() {
        debian::unpack(cache, &debian::codename()?, "nginx", |_| true, &folder)?;
    }
    Ok(program)
}

fn is_new_enough(bpftool: &Path) -> bool {
    bpftool.exists()
        && exec::output(Command::new(bpftool).arg("version"))
            .ok()
            .and_then(|text| Version::find(&text))
            .is_some_and(|version| version >= BPFTOOL)
}

/// The packages that are needed for the programs that are not there.
fn missing(packages: &[Package], is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut names: Vec<_> = packages
        .iter()
        .filter(|package| !is_there(package.program))
        .map(|package| package.package)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_of_two_programs_is_named_once() {
        let names = missing(NETWORK, |program| !["ip", "tc", "nft"].contains(&program));
        assert_eq!(names, ["iproute2", "nftables"]);
    }

    #[test]
    fn nothing_is_missing_when_all_is_there() {
        assert!(missing(NETWORK, |_| true).is_empty());
    }
}
