//! `LOCAL_ADDRS`: the addresses of this node.

use crate::pod;

/// Value of `LOCAL_ADDRS`, a longest-prefix-match trie over addresses: what
/// the local routing table says is local may be a whole prefix (E25).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LocalAddr {
    /// [`LocalAddr::NODE_PORTS`], [`LocalAddr::LOOPBACK`].
    pub flags: u32,
}

impl LocalAddr {
    /// Clients may use NodePorts on this address (S52).
    pub const NODE_PORTS: u32 = 1;
    /// Of the loopback: reachable from this node's own processes only.
    pub const LOOPBACK: u32 = 2;
}

const _: () = assert!(size_of::<LocalAddr>() == 4);
pod!(LocalAddr);
