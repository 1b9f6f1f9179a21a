//! What the host must offer: privileges, a kernel that is new enough, and the
//! bpf and cgroup2 file systems.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};

use crate::dataplane::load::kernel_version;

/// Oldest kernel whose helpers the programs use: `bpf_for_each_map_elem` (5.13),
/// and the verifier's bounds tracking that came with 5.15.
pub const MINIMUM_KERNEL: (u32, u32) = (5, 15);

/// First series of kernels that, built as `PREEMPT_RT`, may let a more urgent packet
/// in while a program runs on a CPU (6.18, and 6.12 from 6.12.57 on). Before, disabled
/// bottom halves held it off there too.
const PREEMPTS_PROGRAMS_SINCE: (u32, u32) = (6, 12);

/// Why the host cannot run the proxy.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    #[error(
        "not allowed to use eBPF, the capabilities {} are missing: run as root, or with BPF, NET_ADMIN and PERFMON",
        .0.join(", ")
    )]
    Privileges(Vec<&'static str>),
    #[error("kernel {}.{} is too old: {}.{} or later is needed", .0.0, .0.1, MINIMUM_KERNEL.0, MINIMUM_KERNEL.1)]
    Kernel((u32, u32)),
    #[error(
        "kernel {}.{} is a real-time one (PREEMPT_RT): packets may preempt each other on a CPU, whose memory the programs use; boot another one",
        .0.0, .0.1
    )]
    RealTime((u32, u32)),
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
    #[error(
        "{0} is no folder of a cgroup2 file system; without --cgroup-root, the one that is mounted is used"
    )]
    NotCgroup2(PathBuf),
    #[error("read the mount table")]
    Mounts(#[source] io::Error),
}

/// Checks that this process may load programs. What counts is capabilities:
/// root in a container has as many as it was given.
pub fn require_privileges() -> Result<(), SystemError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match missing_capabilities(effective_capabilities(&status).unwrap_or(0))[..] {
        [] => Ok(()),
        ref missing => Err(SystemError::Privileges(missing.to_owned())),
    }
}

/// Capabilities that the kernel asks for, by number: to load programs, to have
/// them compare pointers into packets, and to attach them.
const NEEDED: [(u32, &str); 3] = [(39, "BPF"), (38, "PERFMON"), (12, "NET_ADMIN")];
/// Stands for all of them wherever bpf(2) asks.
const CAP_SYS_ADMIN: u32 = 21;

fn missing_capabilities(set: u64) -> Vec<&'static str> {
    let has = |number: u32| set >> number & 1 == 1;
    let missing = NEEDED
        .into_iter()
        .filter(|(number, _)| !has(*number) && !has(CAP_SYS_ADMIN));
    missing.map(|(_, name)| name).collect()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Checks that the kernel is new enough, and lets no packet in while a program runs.
pub fn require_kernel() -> Result<(), SystemError> {
    let version = kernel_version();
    if version < MINIMUM_KERNEL {
        return Err(SystemError::Kernel(version));
    }
    if preempts_programs(version, is_real_time()) {
        return Err(SystemError::RealTime(version));
    }
    Ok(())
}

/// Whether packets may preempt each other on a CPU. The slow path keeps what it
/// works on in memory of the CPU's.
pub fn preempts_programs(version: (u32, u32), is_real_time: bool) -> bool {
    is_real_time && version >= PREEMPTS_PROGRAMS_SINCE
}

/// Whether the kernel was built as `PREEMPT_RT`.
pub fn is_real_time() -> bool {
    fs::read_to_string("/sys/kernel/realtime").is_ok_and(|value| value.trim() == "1")
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

/// Keeps all memory in one place, whichever thread asks for it. To be called
/// before there are other threads. What one thread gives up after reading all
/// objects is then there for the tables of another, and threads are too few to
/// wait for each other.
pub fn share_memory_among_threads() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator. Where that should fail, threads
    // have memory of their own, as usual.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is free back to the system. Reading all objects or whole
/// tables takes several times the memory of what is kept of them, and the
/// allocator would hold on to it.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator takes its own locks, and gives up free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether the path is in a bpf file system.
pub fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether the path is in a cgroup2 file system.
pub fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Whether the folder is the root of all cgroups, which a container with a
/// cgroup namespace of its own does not see.
pub fn is_root_cgroup(path: &Path) -> bool {
    const ROOT: u64 = 1;
    fs::metadata(path).is_ok_and(|metadata| metadata.ino() == ROOT)
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
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::ordinary((6, 18), false, false)]
    #[case::serialized((6, 6), true, false)]
    #[case::preemptible((6, 12), true, true)]
    fn real_time_kernels_may_preempt_programs(
        #[case] version: (u32, u32),
        #[case] is_real_time: bool,
        #[case] expected: bool,
    ) {
        assert_eq!(preempts_programs(version, is_real_time), expected);
    }

    #[test]
    fn finds_cgroup2_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find_cgroup2(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_cgroup2("tmpfs /tmp tmpfs rw 0 0\n"), None);
    }

    #[rstest]
    #[case::the_daemon_set("000000c000001000", &[])]
    #[case::sys_admin("0000000000200000", &[])]
    #[case::no_perfmon("0000008000001000", &["PERFMON"])]
    #[case::no_net_admin("000000c000000000", &["NET_ADMIN"])]
    #[case::nobody("0000000000000000", &["BPF", "PERFMON", "NET_ADMIN"])]
    fn names_the_capabilities_that_are_missing(#[case] set: &str, #[case] missing: &[&str]) {
        let status = format!("CapPrm:\t0000000000000000\nCapEff:\t{set}\n");
        let set = effective_capabilities(&status).expect("a line");
        assert_eq!(missing_capabilities(set), missing);
        assert_eq!(effective_capabilities("no such line"), None);
    }

    #[test]
    fn a_root_elsewhere_is_refused_with_a_way_out() {
        let error = mount_bpf(Path::new("/proc/tandem")).expect_err("no bpf there");
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"));
    }
}
