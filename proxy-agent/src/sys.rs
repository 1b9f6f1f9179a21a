//! The host: what it must offer, and the system calls that no crate wraps.

pub(crate) mod allocator;
pub(crate) mod capabilities;
pub(crate) mod conntrack;
pub(crate) mod filesystems;
pub mod kernel;
pub(crate) mod memory;
pub(crate) mod mount_namespace;
pub mod netfilter;
pub(crate) mod netns;

use std::{io, path::PathBuf};

use self::kernel::MINIMUM_KERNEL;

/// A reason why the host cannot run the proxy.
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
