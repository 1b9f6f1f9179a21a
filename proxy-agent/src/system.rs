//! What the host must offer: privileges, a kernel that is new enough, and the
//! bpf and cgroup2 file systems.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

use crate::dataplane::load::kernel_version;

/// Oldest kernel whose helpers the programs use: `bpf_for_each_map_elem` (5.13),
/// and the verifier's bounds tracking that came with 5.15.
pub const MINIMUM_KERNEL: (u32, u32) = (5, 15);

/// Why the host cannot run the proxy.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    #[error(
        "not allowed to use eBPF: run as root, or with the capabilities BPF, NET_ADMIN and PERFMON"
    )]
    Privileges,
    #[error("kernel {}.{} is too old: {}.{} or later is needed", .0.0, .0.1, MINIMUM_KERNEL.0, MINIMUM_KERNEL.1)]
    Kernel((u32, u32)),
    #[error(
        "no bpf file system at {path} and it cannot be mounted; `mount -t bpf bpf {mount}` does it"
    )]
    BpfFs {
        path: PathBuf,
        mount: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no cgroup2 file system is mounted; `mount -t cgroup2 none /sys/fs/cgroup` does it")]
    NoCgroup2,
    #[error("read the mount table")]
    Mounts(#[source] io::Error),
}

/// Checks that this process may load programs.
pub fn require_privileges() -> Result<(), SystemError> {
    if geteuid().is_root() || has_capability(CAP_BPF) && has_capability(CAP_NET_ADMIN) {
        Ok(())
    } else {
        Err(SystemError::Privileges)
    }
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_BPF: u32 = 39;

fn has_capability(number: u32) -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    effective_capabilities(&status).is_some_and(|set| set >> number & 1 == 1)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Checks that the kernel is new enough.
pub fn require_kernel() -> Result<(), SystemError> {
    let version = kernel_version();
    if version < MINIMUM_KERNEL {
        return Err(SystemError::Kernel(version));
    }
    Ok(())
}

/// Makes sure that `bpf_root` is in a bpf file system, mounting one where such
/// things belong if there is none.
pub fn mount_bpf(bpf_root: &Path) -> Result<(), SystemError> {
    const MOUNT: &str = "/sys/fs/bpf";
    let existing = bpf_root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if is_bpf(existing) {
        return Ok(());
    }
    let failed = |source: io::Error| SystemError::BpfFs {
        path: bpf_root.to_owned(),
        mount: MOUNT.into(),
        source,
    };
    if !bpf_root.starts_with(MOUNT) {
        return Err(failed(io::Error::other("it is in another file system")));
    }
    mount(
        Some("bpf"),
        MOUNT,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|errno| failed(errno.into()))
}

/// Whether the path is in a bpf file system.
pub fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Where cgroup2 is mounted. Hosts with both versions have it elsewhere than
/// at the usual place.
pub fn cgroup2_mount() -> Result<PathBuf, SystemError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(SystemError::Mounts)?;
    find_cgroup2(&mounts).ok_or(SystemError::NoCgroup2)
}

fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next() == Some("cgroup2")).then(|| path.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find_cgroup2(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_cgroup2("tmpfs /tmp tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn reads_effective_capabilities() {
        let status = "CapPrm:\t0000000000000000\nCapEff:\t0000008000001000\n";
        let set = effective_capabilities(status).expect("a line");
        assert!(set >> CAP_BPF & 1 == 1 && set >> CAP_NET_ADMIN & 1 == 1);
        assert_eq!(effective_capabilities("no such line"), None);
    }

    #[test]
    fn a_root_elsewhere_is_refused_with_a_way_out() {
        let error = mount_bpf(Path::new("/proc/tandem")).expect_err("no bpf there");
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"));
    }
}
