//! Whether others see a mount of this process, and for how long it lives.
//!
//! A mount goes with the last process of its mount namespace. `ip netns exec` gives each
//! command a namespace of its own with a new `/sys`: a bpf file system that is mounted
//! there goes with the command, and with it what is pinned.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
};

/// The inode of the first pid namespace, in which process 1 is the host's.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// How long a mount lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the host, or whoever made it, lets it.
    Host,
    /// As long as other processes of this mount namespace.
    Others,
    /// As long as this process.
    Process,
}

/// What is known of the file system that a path is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that have nothing to do with each other"
)]
struct Facts {
    /// This process mounted it.
    is_ours: bool,
    /// This process is the first of its pid namespace.
    is_first: bool,
    /// The first process of the pid namespace sees it, or does not say.
    first_sees_it: bool,
    /// That one is the host's first process.
    is_on_host: bool,
    /// A process with another mount namespace sees it, too.
    is_elsewhere: bool,
    /// Other processes have the same mount namespace.
    has_others: bool,
}

impl Facts {
    fn lifetime(self) -> Lifetime {
        let is_private = if self.is_ours {
            self.is_first || !self.first_sees_it
        } else {
            // A container does not see who else has what was mounted into it.
            self.is_on_host && !self.first_sees_it && !self.is_elsewhere
        };
        match (is_private, self.has_others) {
            (false, _) => Lifetime::Host,
            (true, true) => Lifetime::Others,
            (true, false) => Lifetime::Process,
        }
    }
}

/// Finds out how long the mount lives that a path is below. `is_ours` says that this
/// process mounted it.
pub fn lifetime(path: &Path, is_ours: bool) -> Lifetime {
    let own = namespace("self", "mnt");
    let device = fs::metadata(path).ok().map(|metadata| {
        let device = metadata.dev();
        format!("{}:{}", libc::major(device), libc::minor(device))
    });
    let mut facts = Facts {
        is_ours,
        is_first: process::id() == 1,
        first_sees_it: sees("1", device.as_deref()) != Some(false),
        is_on_host: inode("self", "pid") == Some(FIRST_PID_NAMESPACE),
        is_elsewhere: false,
        has_others: false,
    };
    if own.is_none() {
        return Lifetime::Host;
    }
    for pid in other_processes() {
        let of = namespace(&pid, "mnt");
        if of == own {
            facts.has_others = true;
        } else if of.is_some() && !facts.is_elsewhere {
            facts.is_elsewhere = sees(&pid, device.as_deref()) == Some(true);
        }
    }
    facts.lifetime()
}

fn other_processes() -> impl Iterator<Item = String> {
    let own = process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(move |name| *name != own && name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns whether a process sees a mount of a device; `None` if that cannot be told.
fn sees(process: &str, device: Option<&str>) -> Option<bool> {
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).ok()?;
    Some(has_mount(&mounts, device?))
}

fn namespace(process: &str, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()
}

fn inode(process: &str, kind: &str) -> Option<u64> {
    let metadata = fs::metadata(format!("/proc/{process}/ns/{kind}")).ok()?;
    Some(metadata.ino())
}

/// Returns whether a mount table has a mount of the device `MAJOR:MINOR`.
fn has_mount(mountinfo: &str, device: &str) -> bool {
    let mut devices = mountinfo.lines().filter_map(|line| line.split(' ').nth(2));
    devices.any(|found| found == device)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HOST: Facts = Facts {
        is_ours: false,
        is_first: false,
        first_sees_it: true,
        is_on_host: true,
        is_elsewhere: true,
        has_others: true,
    };
    const NETNS_EXEC: Facts = Facts {
        is_ours: true,
        first_sees_it: false,
        is_elsewhere: false,
        has_others: false,
        ..HOST
    };
    const CONTAINER: Facts = Facts {
        is_first: true,
        first_sees_it: true,
        is_on_host: false,
        is_elsewhere: false,
        has_others: false,
        ..HOST
    };

    #[rstest]
    #[case::on_the_host(HOST, Lifetime::Host)]
    #[case::mounted_on_the_host(Facts { is_ours: true, ..HOST }, Lifetime::Host)]
    #[case::under_ip_netns_exec(NETNS_EXEC, Lifetime::Process)]
    #[case::in_a_shell_under_it(Facts { has_others: true, ..NETNS_EXEC }, Lifetime::Others)]
    #[case::again_in_that_shell(Facts { is_ours: false, has_others: true, ..NETNS_EXEC }, Lifetime::Others)]
    #[case::a_unit_that_sees_the_hosts(Facts { first_sees_it: false, ..HOST }, Lifetime::Host)]
    #[case::given_to_a_container(CONTAINER, Lifetime::Host)]
    #[case::given_to_one_of_a_pod(Facts { is_first: false, first_sees_it: false, ..CONTAINER }, Lifetime::Host)]
    #[case::mounted_in_a_container(Facts { is_ours: true, ..CONTAINER }, Lifetime::Process)]
    #[case::a_node_that_is_a_container(Facts { is_ours: true, is_first: false, ..CONTAINER }, Lifetime::Host)]
    fn mounts_live_as_long_as(#[case] facts: Facts, #[case] expected: Lifetime) {
        assert_eq!(facts.lifetime(), expected);
    }

    #[test]
    fn devices_are_found_in_mount_tables() {
        let mounts =
            "36 35 0:31 / /sys rw - sysfs sysfs rw\n40 36 0:41 / /sys/fs/bpf rw - bpf bpf rw\n";
        assert!(has_mount(mounts, "0:41"));
        assert!(!has_mount(mounts, "0:4"));
    }
}
