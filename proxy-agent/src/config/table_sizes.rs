//! Sizes of tables by the node's memory: of flow tables unless `--flow-table-size` says so,
//! and the limit up to which tables of Services grow.

use crate::{dataplane::load::Sizes, sys::memory::Memory};

/// Kernel memory of one entry of `FLOWS` and `MASQ` and a quarter of one of `AFFINITY`,
/// of both families together.
pub const BYTES_PER_FLOW: u64 = 576;

/// The smallest and the largest table that is made by memory. Both are powers of two.
const LEAST: u32 = 1 << 14;
const MOST: u32 = 1 << 19;

/// Part of the node's memory that flow tables may take, and that tables of Services may:
/// what conntrack's may on a node of 4 GiB.
const OF_THE_NODE: u64 = 50;
/// Part of a cgroup's limit that they may: the other tables and the agent need the rest.
const OF_THE_LIMIT: u64 = 2;

/// Returns the number of flows that the tables of this node are made for.
pub fn flows() -> u32 {
    Memory::read().map_or(Sizes::DEFAULT.flows, flows_for)
}

/// Returns the bytes that the tables of Services of this node may grow to; 0 if the node's
/// memory is unknown.
pub fn bytes_for_services() -> u64 {
    Memory::read().map_or(0, bytes_for_services_of)
}

/// Flows that the tables are made for: the largest power of two whose tables take no
/// more than their part.
fn flows_for(memory: Memory) -> u32 {
    let flows = part(memory, OF_THE_LIMIT) / BYTES_PER_FLOW;
    let flows = u32::try_from(flows).unwrap_or(MOST).clamp(LEAST, MOST);
    1 << flows.ilog2()
}

/// Bytes that the tables of Services may take: while they grow, those that they had before
/// are there, too.
fn bytes_for_services_of(memory: Memory) -> u64 {
    part(memory, 2 * OF_THE_LIMIT)
}

/// Returns the node's part of memory, at most the given fraction of the limit.
fn part(memory: Memory, of_the_limit: u64) -> u64 {
    let limit = memory.limit.map_or(u64::MAX, |limit| limit / of_the_limit);
    (memory.node / OF_THE_NODE).min(limit)
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
        assert_eq!(flows_for(memory), expected);
    }
}
