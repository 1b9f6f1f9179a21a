//! Requirements on the machine itself: root, a kernel with BTF, bpffs, cgroup2.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{exec, version::Version};

/// The oldest kernel that Tandem supports.
const KERNEL: Version = Version::new(5, 15, 0);
const BTF: &str = "/sys/kernel/btf/vmlinux";
const BPFFS: &str = "/sys/fs/bpf";

/// Checks the kernel and mounts bpffs if nobody has.
pub(super) fn ensure() -> Result<()> {
    require_root("for network namespaces and BPF programs")?;
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let kernel =
        Version::find(&release).with_context(|| format!("odd kernel release {release}"))?;
    ensure!(
        kernel >= KERNEL,
        "kernel {kernel} is too old: Tandem needs {KERNEL} or newer"
    );
    ensure!(
        Path::new(BTF).exists(),
        "the kernel has no BTF at {BTF}: use one built with CONFIG_DEBUG_INFO_BTF=y"
    );
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    ensure!(
        mount_point(&mounts, "cgroup2").is_some(),
        "cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
    );
    if mount_point(&mounts, "bpf").is_none() {
        exec::output(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    }
    Ok(())
}

/// Fails with one line unless this runs as root.
pub(super) fn require_root(purpose: &str) -> Result<()> {
    if exec::is_root() {
        return Ok(());
    }
    bail!("root is needed {purpose}: run it with sudo")
}

/// Returns the mount point of a file system of this type, out of `/proc/self/mounts`.
pub(crate) fn mount_point<'a>(mounts: &'a str, kind: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let point = words.next()?;
        (words.next()? == kind).then_some(point)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MOUNTS: &str = "\
proc /proc proc rw,relatime 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
none /sys/fs/bpf bpf rw,relatime 0 0";

    #[rstest]
    #[case::second_hierarchy("cgroup2", Some("/sys/fs/cgroup/unified"))]
    #[case::by_type_not_by_name("bpf", Some("/sys/fs/bpf"))]
    #[case::not_mounted("tracefs", None)]
    fn finds_a_mount_by_its_type(#[case] kind: &str, #[case] expected: Option<&str>) {
        assert_eq!(mount_point(MOUNTS, kind), expected);
    }
}
