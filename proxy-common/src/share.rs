//! `CLIENTS`, `CLIENT_SIZES` and `SHARES`: which part of a flow table that is nearly
//! full each client may have.
//!
//! Only sweeps under pressure count, and only while they do is anything of this in
//! force: the tables are not pinned, and nothing in them has to outlive an agent.

use crate::pod;

/// Value of `CLIENTS`, whose key is what [`ConfigFamily::client`] makes of an address.
///
/// [`ConfigFamily::client`]: crate::config::ConfigFamily::client
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ClientFlows {
    /// Flows that are not over: those of the last sweep, and all that were opened
    /// since.
    pub flows: u32,
    /// Of these, the ones that the last sweep found established.
    pub established: u32,
    /// The same two, as far as the running sweep has come.
    pub flows_so_far: u32,
    pub established_so_far: u32,
    /// Established flows that it has removed.
    pub removed_so_far: u32,
}

/// Value of `CLIENT_SIZES`: clients by the number of their flows, where those that are
/// not established, or came and went since the last sweep, count only if they are many. Row `n` is of those with 2^n to 2^(n+1) - 1.
pub type ClientSizes = [ClientSize; ROWS];

/// Rows of [`ClientSizes`].
pub const ROWS: usize = 32;

/// Clients of about one size.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ClientSize {
    pub clients: u32,
    /// Flows of all of them together.
    pub flows: u32,
}

/// Row of [`ClientSizes`] for a client with so many flows.
#[inline(always)]
pub const fn row(flows: u32) -> usize {
    // Of no flows as of one.
    ((flows | 1).ilog2()) as usize & (ROWS - 1)
}

/// Value of `SHARES`: flows that a client may have. [`UNLIMITED`] unless the table is
/// nearly full.
pub type Share = u32;

/// As many as there is room for.
pub const UNLIMITED: Share = 0;

const _: () = assert!(size_of::<ClientFlows>() == 20 && size_of::<ClientSize>() == 8);
pod!(ClientFlows, ClientSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_powers_of_two() {
        for (flows, expected) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (u32::MAX, 31)] {
            assert_eq!(row(flows), expected, "{flows}");
        }
    }
}
