//! The maps, by family.

pub mod node;
pub mod prefilter;
pub mod refusals;
pub mod scratch;
pub mod sweeps;
pub mod tables;
pub mod tail_call;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};

/// Table sizes here are small; the agent sets the real ones when it loads.
pub const SMALL: usize = 1024;
pub const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
pub const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Reads eight aligned bytes of a map's value in one access, so that they are the old
/// ones or the new ones.
///
/// # Safety
///
/// The pointer leads into a value of a map, and every bit pattern is a valid `T`.
#[inline(always)]
pub unsafe fn read_at_once<T: Copy>(pointer: *const T) -> T {
    const { assert!(size_of::<T>() == 8 && align_of::<T>() == 8) };
    // SAFETY: a map's values are there as long as the program runs, and the caller
    // knows of the rest.
    unsafe { core::mem::transmute_copy::<u64, T>(&pointer.cast::<u64>().read_volatile()) }
}
