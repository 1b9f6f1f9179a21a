//! The memory that this system and the cgroup of this process have.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tracing::debug;

/// Memory that may be used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of the whole node.
    pub node: u64,
    /// The limit of the agent's cgroup, if it is below the node's memory. The kernel
    /// charges tables to the cgroup of the process that makes them.
    pub limit: Option<u64>,
}

impl Memory {
    /// Reads both from the system; `None` if the node's memory is unknown.
    pub fn read() -> Option<Self> {
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let limits = limit_files(
            &text(Path::new("/proc/self/mounts")),
            &text(Path::new("/proc/self/cgroup")),
        );
        Some(Self {
            node: total(&text(Path::new("/proc/meminfo")))?,
            limit: limits.iter().filter_map(|path| limit(&text(path))).min(),
        })
    }
}

/// Tells the kernel how readily to end this process when memory is short. Only the
/// privileged may lower it, and a kubelet has done so for the pods that matter.
pub fn set_oom_score_adj(score: i32) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let is_set = fs::read_to_string(FILE).is_ok_and(|text| text.trim().parse() == Ok(score));
    if !is_set && let Err(error) = fs::write(FILE, score.to_string()) {
        debug!("oom_score_adj stays as it is, {score} cannot be set: {error}");
    }
}

/// The node's memory, as `/proc/meminfo` has it.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Returns a limit in a cgroup's file; `None` if there is none. Version 1 writes a number
/// for that which no node has.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Returns the files that may hold limits of this process: those of its cgroup and of
/// the ones above, as far as they are visible, in either cgroup version.
fn limit_files(mounts: &str, own: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for mount in mounts.lines() {
        let fields: Vec<_> = mount.split(' ').collect();
        let &[_, path, kind, options, ..] = fields.as_slice() else {
            continue;
        };
        let is_memory = |controllers: &str| controllers.split(',').any(|one| one == "memory");
        let (is_own, file): (&dyn Fn(&str) -> bool, _) = match kind {
            "cgroup2" => (&str::is_empty, "memory.max"),
            "cgroup" if is_memory(options) => (&is_memory, "memory.limit_in_bytes"),
            _ => continue,
        };
        let cgroups = own.lines().filter_map(|line| {
            let (controllers, cgroup) = line.split_once(':')?.1.split_once(':')?;
            is_own(controllers).then_some(cgroup)
        });
        for cgroup in cgroups {
            let folders = Path::new(cgroup.trim_start_matches('/')).ancestors();
            files.extend(folders.map(|folder| Path::new(path).join(folder).join(file)));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("MemTotal:        4037160 kB\nMemFree: 1 kB\n", Some(4_037_160 * 1024))]
    #[case("MemTotal: many kB\n", None)]
    #[case("MemTotal: 18446744073709551615 kB\n", None)]
    #[case("", None)]
    fn reads_the_nodes_memory(#[case] meminfo: &str, #[case] expected: Option<u64>) {
        assert_eq!(total(meminfo), expected);
    }

    #[rstest]
    #[case("201326592\n", Some(201_326_592))]
    #[case("max\n", None)]
    #[case("", None)]
    fn reads_limits(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(limit(text), expected);
    }

    #[rstest]
    #[case::version_2(
        "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
        "0::/pods/one\n",
        &[
            "/sys/fs/cgroup/pods/one/memory.max",
            "/sys/fs/cgroup/pods/memory.max",
            "/sys/fs/cgroup/memory.max",
        ]
    )]
    #[case::a_container(
        "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
        "0::/\n",
        &["/sys/fs/cgroup/memory.max"]
    )]
    #[case::version_1(
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
         cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n",
        "4:memory:/one\n1:cpu:/two\n0::/\n",
        &[
            "/sys/fs/cgroup/memory/one/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ]
    )]
    #[case::nonsense("cgroup2\n", "what\n", &[])]
    fn finds_where_limits_are(#[case] mounts: &str, #[case] own: &str, #[case] expected: &[&str]) {
        let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(limit_files(mounts, own), expected);
    }

    #[test]
    fn this_system_tells() {
        let memory = Memory::read().expect("procfs is mounted");
        assert!(memory.node > 1 << 20, "{memory:?}");
    }
}
