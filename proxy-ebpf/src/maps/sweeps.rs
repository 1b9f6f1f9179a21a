//! Memory of sweeps: their reports, what they leave to the next one, and what they are told.

use aya_ebpf::{
    btf_maps::Array, cty::c_void, helpers::generated::bpf_for_each_map_elem, macros::btf_map,
};
use proxy_common::share::{ClientSizes, Share};

use crate::maps::tables::Tables;

#[btf_map]
static SWEEPS: Array<Sweep, 2> = Array::new();
/// Reply tuples in use at the last sweep, by family.
#[btf_map]
static SWEPT_MASQ: Array<u32, 2> = Array::new();
/// Makes a loop of 64 rounds of the helper that visits the elements of a map. The
/// verifier follows one round of that, where it would follow all of a loop.
#[btf_map]
static ROUNDS: Array<u32, 64> = Array::new();
/// By family, what the last sweep leaves to the next one.
#[btf_map]
static IDLE: Array<Idle, 2> = Array::new();
/// By family.
#[btf_map]
static CLIENT_SIZES: Array<ClientSizes, 2> = Array::new();
/// By family, written by the agent.
#[btf_map]
static SHARES: Array<Share, 2> = Array::new();

/// The findings of the last sweep of a family.
#[repr(C)]
pub struct Sweep {
    /// Flows in the table.
    pub flows: u32,
    /// Flows removed.
    pub expired: u32,
}

/// A sweep, and how long it found established flows idle.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Idle {
    /// The longest time.
    pub longest: u32,
    /// The number of those of clients that have more than their share.
    pub over_share: u32,
    /// The longest time of these.
    pub longest_over_share: u32,
    /// The time of the sweep.
    pub swept: u32,
    /// The number of sweeps in a row, up to this one, that were under pressure.
    pub pressed: u32,
}

/// Calls back at most 64 times, until `visit` returns 1. It must have the
/// signature that the helper calls.
#[inline(always)]
pub fn up_to_64_times<T>(visit: *mut c_void, state: &mut T) {
    // SAFETY: a map, a function as the caller promises, and a state that
    // outlives the call.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const ROUNDS).cast_mut().cast(),
            visit,
            core::ptr::from_mut(state).cast(),
            0,
        );
    }
}

/// The report of the last sweep of a family.
#[inline(always)]
pub fn sweep<F: Tables>() -> Option<*mut Sweep> {
    SWEEPS.get_ptr_mut(F::SWEEP)
}

/// The report of the last sweep of a family about reply tuples: how many there are.
#[inline(always)]
pub fn swept_replies<F: Tables>() -> Option<*mut u32> {
    SWEPT_MASQ.get_ptr_mut(F::SWEEP)
}

/// The state that the last sweep of a family left.
#[inline(always)]
pub fn idle<F: Tables>() -> Option<*mut Idle> {
    IDLE.get_ptr_mut(F::SWEEP)
}

/// The report of a sweep of a family about its clients' sizes.
#[inline(always)]
pub fn client_sizes<F: Tables>() -> Option<*mut ClientSizes> {
    CLIENT_SIZES.get_ptr_mut(F::SWEEP)
}

/// The share that each client of a family may have.
#[inline(always)]
pub fn share<F: Tables>() -> Option<*mut Share> {
    SHARES.get_ptr_mut(F::SWEEP)
}
