//! Shares: the part of a nearly full flow table that each client has, and may have.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_for_each_map_elem};
use core::ptr::NonNull;

use proxy_common::{
    family::{V4, V6},
    flow::ticks_from_seconds,
    share::{ClientFlows, ClientSize, ROWS, UNLIMITED, row},
};

use crate::{
    clock::now,
    maps::{
        node, sweeps,
        tables::{self, Tables},
    },
    packet::barrier::masked,
};

/// Ticks that shares are in force without a sweep: without an agent nobody counts.
const FRESH: u32 = ticks_from_seconds(10);

/// Flows that do not count in a client's size unless they are established. A flood has
/// few for each sender that it makes up.
const FEW: u32 = 32;

/// Returns whether the client may open one more flow, which is counted.
#[inline(never)]
pub fn admit<F: Tables>(addr: &F::Addr) -> bool {
    let Some(config) = node::config() else {
        return true;
    };
    if config.flags & F::PRESSED == 0 {
        return true;
    }
    let limit = limit::<F>();
    if limit == UNLIMITED || !is_fresh::<F>() {
        return true;
    }
    let client = F::client(config, addr);
    let Some(known) = F::clients().get_ptr_mut(client) else {
        let first = ClientFlows {
            flows: 1,
            ..ClientFlows::default()
        };
        // Where there is no room, or another CPU was first, one is not counted.
        let _ = F::clients().insert(client, first, tables::BPF_NOEXIST);
        return true;
    };
    // SAFETY: a value of the table; aligned accesses of four bytes, of which the
    // second is atomic.
    unsafe {
        let flows = &raw mut (*known).flows;
        if flows.read_volatile() >= limit {
            return false;
        }
        core::arch::asm!(
            "lock *(u32 *)({0} + 0) += {1}",
            in(reg) flows,
            in(reg) 1_u64,
            options(nostack)
        );
    }
    true
}

/// Flows that a client may have.
#[inline(always)]
pub fn limit<F: Tables>() -> u32 {
    // SAFETY: a row of an array lives as long as the program; an aligned load.
    sweeps::share::<F>().map_or(UNLIMITED, |share| unsafe { share.read_volatile() })
}

#[inline(always)]
fn is_fresh<F: Tables>() -> bool {
    // SAFETY: as in `limit`.
    sweeps::idle::<F>().is_some_and(|idle| now().wrapping_sub(unsafe { (*idle).swept }) <= FRESH)
}

/// Returns whether a client has more established flows than its share, and whether it
/// still has after what the running sweep removed.
#[inline(always)]
pub fn excess(client: Option<NonNull<ClientFlows>>, limit: u32) -> (bool, bool) {
    let Some(client) = client else {
        return (false, false);
    };
    // SAFETY: as in `admit`.
    let client = unsafe { client.as_ref() };
    let more = |flows: u32| limit != UNLIMITED && flows > limit;
    let left = client.established.saturating_sub(client.removed_so_far);
    (more(client.established), more(left))
}

/// The client's entry, as a sweep finds it. An option in one register.
#[inline(always)]
pub fn known<F: Tables>(addr: &F::Addr) -> Option<NonNull<ClientFlows>> {
    let client = F::client(node::config()?, addr);
    if let Some(known) = F::clients().get_ptr_mut(client) {
        return NonNull::new(known);
    }
    let _ = F::clients().insert(client, ClientFlows::default(), tables::BPF_NOEXIST);
    NonNull::new(F::clients().get_ptr_mut(client)?)
}

/// Notes a flow that a sweep leaves.
#[inline(always)]
pub fn note(client: NonNull<ClientFlows>, established: bool) {
    let client = client.as_ptr();
    // SAFETY: as in `admit`; only one sweep runs at a time.
    unsafe {
        (*client).flows_so_far += 1;
        if established {
            (*client).established_so_far += 1;
        }
    }
}

/// Notes an established flow that a sweep removes.
#[inline(always)]
pub fn forget(client: NonNull<ClientFlows>) {
    let client = client.as_ptr();
    // SAFETY: as in `note`.
    unsafe {
        (*client).removed_so_far += 1;
    }
}

/// Declares one family's end of a sweep: see `family_sweep`.
macro_rules! family_share {
    ($family:ident, $count:ident, $visit:ident) => {
        /// Puts what the sweep counted in force, and tells how large the clients are.
        #[inline(never)]
        pub fn $count() {
            let Some(sizes) = sweeps::client_sizes::<$family>() else {
                return;
            };
            let mut index = 0;
            while index < ROWS {
                // SAFETY: a row of an array lives as long as the program; `index` is
                // within it.
                unsafe {
                    sizes
                        .cast::<ClientSize>()
                        .add(index)
                        .write(ClientSize::default())
                };
                index += 1;
            }
            let mut state = 0_u32;
            // SAFETY: the callback has the signature the helper calls, and the state
            // outlives the call.
            unsafe {
                bpf_for_each_map_elem(
                    core::ptr::from_ref($family::clients()).cast_mut().cast(),
                    $visit as *mut c_void,
                    (&raw mut state).cast(),
                    0,
                );
            }
        }

        extern "C" fn $visit(
            _map: *mut c_void,
            key: *const <$family as proxy_common::family::Family>::Addr,
            value: *mut ClientFlows,
            _state: *mut c_void,
        ) -> i64 {
            // SAFETY: the helper passes valid pointers.
            let (key, client) = unsafe { (*key, &mut *value) };
            let established = client.established_so_far;
            let wanted = if client.flows > client.flows_so_far {
                client.flows
            } else {
                client.flows_so_far
            };
            let size = if wanted > established + FEW {
                wanted
            } else {
                established
            };
            if client.flows_so_far == 0 {
                // It may just be opening one, and is counted by the next sweep.
                let _ = $family::clients().remove(key);
            } else {
                *client = ClientFlows {
                    flows: client.flows_so_far,
                    established,
                    flows_so_far: 0,
                    established_so_far: 0,
                    removed_so_far: 0,
                };
            }
            if size != 0
                && let Some(sizes) = sweeps::client_sizes::<$family>()
            {
                let row = masked::<{ ROWS as u32 - 1 }>(row(size) as u32);
                // SAFETY: a row of an array lives as long as the program; the index is
                // masked to it, and only one sweep runs at a time.
                unsafe {
                    let sizes = sizes.cast::<ClientSize>().add(row);
                    (*sizes).clients += 1;
                    (*sizes).flows += size;
                }
            }
            0
        }
    };
}

family_share!(V4, count_v4, visit_client_v4);
family_share!(V6, count_v6, visit_client_v6);
