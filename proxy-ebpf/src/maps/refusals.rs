//! Counts of the refusals that were sent, and to whom.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};

#[btf_map]
static REFUSALS: PerCpuArray<Refusals, 1> = PerCpuArray::new();
/// By client; not pinned.
#[btf_map]
static REFUSED_CLIENTS: PerCpuArray<RefusedClient, { REFUSED_CLIENTS_MASK as usize + 1 }> =
    PerCpuArray::new();

/// Refusals sent by one CPU in one millisecond.
#[repr(C)]
pub struct Refusals {
    pub millisecond: u64,
    pub sent: u64,
}

/// The refusals that one CPU was asked for by the clients with one hash.
#[repr(C)]
pub struct RefusedClient {
    pub millisecond: u64,
    pub wanted: u64,
    /// Answers in this millisecond.
    pub limit: u64,
}

/// Bits of a client's hash that tell clients apart.
const REFUSED_CLIENTS_MASK: u32 = 0xff;

/// This CPU's record of refusals.
#[inline(always)]
pub fn refusals() -> Option<*mut Refusals> {
    REFUSALS.get_ptr_mut(0)
}

/// This CPU's record of refusals to clients with this hash.
#[inline(always)]
pub fn refusals_to(hash: u32) -> Option<*mut RefusedClient> {
    REFUSED_CLIENTS.get_ptr_mut(hash & REFUSED_CLIENTS_MASK)
}
