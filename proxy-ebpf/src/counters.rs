//! `COUNTERS`: what the programs did and why.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use proxy_common::counter::Counter;

#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::ROOM }> = PerCpuArray::new();

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value; only this CPU writes it.
        unsafe { *value += 1 };
    }
}

/// The same for programs that run in process context, where others that count
/// may come in between.
#[inline(always)]
pub fn count_preemptible(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: one atomic addition to a valid, aligned value.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({0} + 0) += {1}",
                in(reg) value,
                in(reg) 1_u64,
                options(nostack)
            );
        }
    }
}
