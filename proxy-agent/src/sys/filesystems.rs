//! The bpf and cgroup2 file systems.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};

use crate::sys::SystemError;

/// Makes sure that `bpf_root` is in a bpf file system, mounting one where such
/// things belong if there is none. Returns whether it did.
pub fn mount_bpf(bpf_root: &Path) -> Result<bool, SystemError> {
    const MOUNT: &str = "/sys/fs/bpf";
    let existing = bpf_root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if is_bpf(existing) {
        return Ok(false);
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
    .map_err(|errno| failed(errno.into()))?;
    Ok(true)
}

/// Returns whether the path is in a bpf file system.
pub fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Returns whether the path is in a cgroup2 file system.
pub fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Returns whether the folder is the root of all cgroups, which a container with a
/// cgroup namespace of its own does not see.
pub fn is_root_cgroup(path: &Path) -> bool {
    const ROOT: u64 = 1;
    fs::metadata(path).is_ok_and(|metadata| metadata.ino() == ROOT)
}

/// Finds the mount point of cgroup2. Hosts with both versions do not have it at the
/// usual place.
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
    fn a_root_elsewhere_is_refused_with_a_way_out() {
        let error = mount_bpf(Path::new("/proc/tandem")).expect_err("no bpf there");
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"));
    }
}
