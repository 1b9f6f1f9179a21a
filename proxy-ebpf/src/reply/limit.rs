//! How many answers are sent: one client that floods leaves some for others.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

use crate::{lookup::Lookup, maps::refusals, packet::headers::Headers};

/// Refusals that one CPU sends in a tick of the clock.
const LIMIT: u64 = 128;
/// Those of them that may go to one client.
const BURST: u64 = 64;
/// The same if it has just wanted more than it may have.
const SHARE: u64 = 16;
/// How long that is remembered, in milliseconds: a few ticks, which are up to
/// ten milliseconds long.
const RECENT: u64 = 16;

/// Returns whether this CPU may send one more answer, to this client: one that floods
/// leaves answers for others.
#[inline(always)]
pub fn within_limit<F: Lookup>(headers: &Headers<F::Addr>) -> bool {
    // SAFETY: the helper reads a clock.
    let millisecond = unsafe { bpf_ktime_get_coarse_ns() } >> 20;
    let share = F::hash_of_client(headers) as u32;
    let (Some(all), Some(own)) = (refusals::refusals(), refusals::refusals_to(share)) else {
        return false;
    };
    // SAFETY: values of this CPU's own.
    unsafe {
        if (*own).millisecond != millisecond {
            let recent = (*own).millisecond + RECENT >= millisecond;
            let flooded = recent && (*own).wanted > (*own).limit;
            (*own).limit = if flooded { SHARE } else { BURST };
            (*own).millisecond = millisecond;
            (*own).wanted = 0;
        }
        (*own).wanted += 1;
        if (*own).wanted > (*own).limit {
            return false;
        }
        if (*all).millisecond != millisecond {
            (*all).millisecond = millisecond;
            (*all).sent = 0;
        }
        (*all).sent += 1;
        (*all).sent <= LIMIT
    }
}
