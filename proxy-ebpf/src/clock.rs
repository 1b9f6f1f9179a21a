//! The clock of flows.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use proxy_common::flow::ticks;

/// The current flow tick.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes nothing and reads a clock.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}
