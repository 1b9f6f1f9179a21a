//! How large the flow tables are unless `--flow-table-size` says so, and how large those of
//! Services may become: by the memory that there is for them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Memory that may be used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of the whole node.
    pub node: u64,
    /// What the agent's cgroup may use, if less is said there than the node has. The
    /// kernel charges tables to the cgroup of who makes them.
    pub limit: Option<u64>,
}

/// Kernel memory of one entry of `FLOWS` and `MASQ` and a quarter of one of `AFFINITY`,
/// of both families together.
pub const BYTES_PER_FLOW: u64 = 576;

/// The smallest and the largest table that is made by memory. Both are powers of two.
const LEAST: u32 = 1 << 14;
const MOST: u32 = 1 << 19;

/// Part of the node's memory that flow tables may take, and those of Services: what conntrack's may on a node
/// of 4 GiB.
const OF_THE_NODE: u64 = 50;
/// Part of a cgroup's limit that they may: the other tables and the agent need the rest.
const OF_THE_LIMIT: u64 = 2;

impl Memory {
    /// Asks the system; nothing if it does not tell.
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

    /// Flows that the tables are made for: the largest power of two whose tables take no
    /// more than their part.
    pub fn flow_table_size(self) -> u32 {
        let flows = self.part(OF_THE_LIMIT) / BYTES_PER_FLOW;
        let flows = u32::try_from(flows).unwrap_or(MOST).clamp(LEAST, MOST);
        1 << flows.ilog2()
    }

    /// Bytes that the tables of Services may take when they grow: while they do, there are
    /// those that they had before, too.
    pub fn for_services(self) -> u64 {
        self.part(2 * OF_THE_LIMIT)
    }

    /// A part of the node's memory, and no more than one of the limit.
    fn part(self, of_the_limit: u64) -> u64 {
        let limit = self.limit.map_or(u64::MAX, |limit| limit / of_the_limit);
        (self.node / OF_THE_NODE).min(limit)
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

/// A limit as a cgroup has it; nothing for none. Version 1 writes a number for that
/// which no node has.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Where limits of this process may be: of its cgroup and those above, as far as they
/// can be seen, in either version.
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

    const MIB: u64 = 1 << 20;

    #[rstest]
    #[case::tiny(128, None, 16_384)]
    #[case::half_a_gib(500, None, 16_384)]
    #[case::one_gib(980, None, 32_768)]
    #[case::two_gib(1_950, None, 65_536)]
    #[case::four_gib(3_900, None, 131_072)]
    #[case::eight_gib(7_800, None, 262_144)]
    #[case::sixteen_gib(15_900, None, 524_288)]
    #[case::huge(4 << 20, None, 524_288)]
    #[case::nonsense(u64::MAX / MIB, None, 524_288)]
    #[case::a_limit(15_900, Some(192), 131_072)]
    #[case::a_low_limit(15_900, Some(8), 16_384)]
    #[case::a_limit_that_is_none(3_900, Some(u64::MAX / MIB), 131_072)]
    fn flow_tables_fit_the_memory(
        #[case] node: u64,
        #[case] limit: Option<u64>,
        #[case] expected: u32,
    ) {
        let memory = Memory {
            node: node * MIB,
            limit: limit.map(|limit| limit * MIB),
        };
        assert_eq!(memory.flow_table_size(), expected);
    }

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
        assert!(memory.node > MIB, "{memory:?}");
    }
}
