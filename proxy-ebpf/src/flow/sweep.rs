//! Removes idle flows, and reply tuples without a flow, and counts clients' flows where
//! the table is nearly full. Run by the agent every few seconds; takes about 80 ns a
//! record, and a third more where it counts.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_for_each_map_elem};
use proxy_common::{
    config::{ConfigFamily, Timeouts},
    counter::Counter,
    family::{V4, V6},
    flow::{Flow, FlowKey, state, ticks_from_seconds},
    masquerade::MasqueradeKey,
    net::Protocol,
};

use crate::{
    clock::now,
    counters::count,
    flow::{
        record::{self, Record},
        reply_tuple, share, table,
    },
    maps::{
        node,
        sweeps::{self, Idle, Sweep},
        tables::{self, Tables},
    },
    packet::verdict::Outcome,
};

/// Sweeps both families and reports in `SWEEPS`.
#[inline(always)]
pub fn run() -> i32 {
    sweep_v4();
    share::count_v4();
    reap_v4();
    sweep_v6();
    share::count_v6();
    reap_v6();
    Outcome::NEXT.action()
}

/// The callback's state.
#[repr(C)]
struct State {
    timeouts: Timeouts,
    now: u32,
    expired: u32,
    pressed: u32,
    /// Flows that a client may have.
    limit: u32,
    /// Ticks that an established flow may be idle.
    patience: u32,
    /// The same, where its client has more than its share.
    patience_over_share: u32,
    /// The findings so far.
    idle: Idle,
}

/// Ticks that no sweep takes. A record that is further ahead of it says nonsense.
const LONGEST_SWEEP: u32 = 60;

/// Ticks that an established flow may be idle whatever happens, unless its client has
/// more than its share: five minutes.
const LEAST_PATIENCE: u32 = ticks_from_seconds(300);

/// Sweeps under pressure until it is known who has more than its share: one to count
/// and one to compare.
const SHARES_KNOWN: u32 = 2;

/// The same until the flows of those who have, none of which is idle, are taken for busy
/// ones.
const GIVEN_UP: u32 = 10;

/// Ticks after its last packet when no CPU is about to complete a flow's record.
const SETTLED: u32 = 2;

/// Declares one family's sweep: the callback is a function of its own for the
/// kernel, and must not be generic to keep its symbol.
macro_rules! family_sweep {
    ($family:ident, $sweep:ident, $visit:ident, $sweep_flow:ident, $reap:ident, $visit_reply:ident) => {
        #[inline(never)]
        fn $sweep() {
            let Some(config) = node::config() else {
                return;
            };
            let mut state = State {
                timeouts: config.timeouts,
                now: now(),
                expired: 0,
                pressed: config.flags & $family::PRESSED,
                limit: share::limit::<$family>(),
                patience: u32::MAX,
                patience_over_share: u32::MAX,
                idle: Idle::default(),
            };
            state.idle.swept = state.now;
            if state.pressed != 0 {
                set_patience::<$family>(&mut state);
            }
            // SAFETY: the callback has the signature the helper calls, and the
            // state outlives the call.
            let visited = unsafe {
                bpf_for_each_map_elem(
                    core::ptr::from_ref($family::flows()).cast_mut().cast(),
                    $visit as *mut c_void,
                    (&raw mut state).cast(),
                    0,
                )
            };
            report::<$family>(visited as u32, state.expired);
            if let Some(idle) = sweeps::idle::<$family>() {
                // SAFETY: as in `report`.
                unsafe { *idle = state.idle };
            }
        }

        extern "C" fn $visit(
            _map: *mut c_void,
            key: *const FlowKey<<$family as proxy_common::family::Family>::Addr>,
            value: *mut Flow<<$family as proxy_common::family::Family>::Addr>,
            state: *mut State,
        ) -> i64 {
            // SAFETY: the helper passes valid pointers.
            let key = unsafe { *key };
            $sweep_flow(&key, value, state);
            0
        }

        /// A function that the verifier looks at once.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $sweep_flow(
            key: *const FlowKey<<$family as proxy_common::family::Family>::Addr>,
            flow: *const Flow<<$family as proxy_common::family::Family>::Addr>,
            state: *mut State,
        ) -> u32 {
            // SAFETY: the verifier sees to it that they are null or valid.
            let arguments = unsafe { (key.as_ref(), flow.as_ref(), state.as_mut()) };
            if let (Some(key), Some(flow), Some(state)) = arguments {
                visit::<$family>(*key, flow_age(flow), state);
            }
            0
        }

        #[inline(never)]
        fn $reap() {
            let mut reaped = 0_u32;
            // SAFETY: as in the sweep above.
            let visited = unsafe {
                bpf_for_each_map_elem(
                    core::ptr::from_ref($family::masquerades())
                        .cast_mut()
                        .cast(),
                    $visit_reply as *mut c_void,
                    (&raw mut reaped).cast(),
                    0,
                )
            };
            report_replies::<$family>((visited as u32).wrapping_sub(reaped));
        }

        extern "C" fn $visit_reply(
            _map: *mut c_void,
            reply: *const MasqueradeKey<<$family as proxy_common::family::Family>::Addr>,
            holder: *mut FlowKey<<$family as proxy_common::family::Family>::Addr>,
            reaped: *mut u32,
        ) -> i64 {
            // SAFETY: the helper passes valid pointers.
            let (reply, holder, reaped) = unsafe { (*reply, *holder, &mut *reaped) };
            if !is_held::<$family>(&reply, &holder) {
                reap::<$family>(&reply, &holder);
                *reaped += 1;
            }
            0
        }
    };
}

family_sweep!(
    V4,
    sweep_v4,
    visit_v4,
    sweep_flow_v4,
    reap_v4,
    visit_reply_v4
);
family_sweep!(
    V6,
    sweep_v6,
    visit_v6,
    sweep_flow_v6,
    reap_v6,
    visit_reply_v6
);

/// Returns whether a reply tuple is its holder's, or about to become so: it is entered
/// before the flow's record names it, while a packet of the flow is handled.
#[inline(always)]
fn is_held<F: Tables>(reply: &MasqueradeKey<F::Addr>, holder: &FlowKey<F::Addr>) -> bool {
    let Some(record) = table::get::<F>(holder) else {
        return false;
    };
    let flow = record.flow();
    reply_tuple::has_reply::<F>(holder, flow, reply)
        || record::lacks_port(flow) && record::idle(flow) <= SETTLED
}

/// Removes a reply tuple, unless a flow came by that has it after all.
#[inline(always)]
fn reap<F: Tables>(reply: &MasqueradeKey<F::Addr>, holder: &FlowKey<F::Addr>) {
    let _ = F::masquerades().remove(reply);
    if is_held::<F>(reply, holder) {
        // Another flow may have it by now.
        let _ = F::masquerades().insert(reply, holder, tables::BPF_NOEXIST);
    }
    count(Counter::MasqueradeReaped);
}

/// Sets how long established flows may be idle under pressure. Those that have been
/// for longest go first: each sweep halves the time, down to some seconds for clients
/// that have more than their share. Only where that does not help it is everybody's
/// turn, down to some minutes.
#[inline(always)]
fn set_patience<F: Tables>(state: &mut State) {
    let Some(last) = sweeps::idle::<F>() else {
        return;
    };
    // SAFETY: as in `report`.
    let last = unsafe { *last };
    state.idle.pressed = last.pressed.saturating_add(1);
    let turn = if last.over_share == 0 {
        SHARES_KNOWN
    } else {
        let some_seconds = state.timeouts.pressed;
        state.patience_over_share = at_least(last.longest_over_share / 2, some_seconds);
        if last.longest_over_share > some_seconds {
            return;
        }
        GIVEN_UP
    };
    if last.pressed >= turn {
        state.patience = at_least(last.longest / 2, LEAST_PATIENCE);
    }
}

#[inline(always)]
fn at_least(ticks: u32, least: u32) -> u32 {
    if ticks < least { least } else { ticks }
}

/// The part of a flow that decides how long it lives.
struct Age {
    client_state: u8,
    backend_state: u8,
    last_seen: u32,
}

#[inline(always)]
fn flow_age<A>(flow: &Flow<A>) -> Age {
    Age {
        client_state: flow.client_state,
        backend_state: flow.backend_state,
        last_seen: flow.last_seen,
    }
}

/// The phase that a flow is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Established,
    Closing,
}

#[inline(always)]
fn stage(age: &Age, protocol: Protocol) -> Stage {
    let both = age.client_state & age.backend_state;
    let any = age.client_state | age.backend_state;
    let established = if protocol.has_connections() {
        if both & state::FIN != 0 || any & state::RST != 0 {
            return Stage::Closing;
        }
        age.client_state & state::BEYOND_SYN != 0 && age.backend_state & state::SEEN != 0
    } else {
        both & state::SEEN != 0
    };
    if established {
        Stage::Established
    } else {
        Stage::Opening
    }
}

/// Returns how long a flow may be idle without pressure.
#[inline(always)]
fn timeout(stage: Stage, protocol: Protocol, timeouts: &Timeouts) -> u32 {
    match (stage, protocol.has_connections()) {
        (Stage::Opening, true) => timeouts.tcp_opening,
        (Stage::Established, true) => timeouts.tcp_established,
        (Stage::Closing, _) => timeouts.tcp_closing,
        (Stage::Opening, false) => timeouts.other_unreplied,
        (Stage::Established, false) => timeouts.other_replied,
    }
}

/// Removes the flow if it has been idle for too long, and counts it if not.
#[inline(always)]
fn visit<F: Tables>(key: FlowKey<F::Addr>, age: Age, sweep: &mut State) {
    let stage = stage(&age, key.protocol);
    let established = stage == Stage::Established;
    let client = if sweep.pressed != 0 && stage != Stage::Closing {
        share::known::<F>(&key.addr)
    } else {
        None
    };
    let (over_share, too_many) = if established {
        share::excess(client, sweep.limit)
    } else {
        (false, false)
    };
    let patience = if too_many {
        sweep.patience_over_share
    } else if established {
        sweep.patience
    } else if sweep.pressed != 0 {
        sweep.timeouts.pressed
    } else {
        u32::MAX
    };
    let timeout = timeout(stage, key.protocol, &sweep.timeouts);
    let timeout = if patience < timeout {
        patience
    } else {
        timeout
    };
    // A packet may have moved `last_seen` past `now` while the sweep runs.
    let idle = sweep.now.wrapping_sub(age.last_seen);
    let touched = idle >= u32::MAX - LONGEST_SWEEP;
    if idle > timeout && !touched && expire::<F>(key) {
        sweep.expired += 1;
        if established && let Some(client) = client {
            share::forget(client);
        }
        return;
    }
    if let Some(client) = client {
        share::note(client, established);
    }
    if over_share {
        sweep.idle.over_share += 1;
    }
    if established && !touched {
        let longest = if over_share {
            &mut sweep.idle.longest_over_share
        } else {
            &mut sweep.idle.longest
        };
        if idle > *longest {
            *longest = idle;
        }
    }
}

/// Returns whether the flow was removed.
#[inline(always)]
fn expire<F: Tables>(key: FlowKey<F::Addr>) -> bool {
    let Some(record) = table::get::<F>(&key) else {
        return false;
    };
    if key.index == 0 && has_siblings::<F>(key, record) {
        return false;
    }
    table::delete::<F>(&key, record);
    count(Counter::FlowExpired);
    true
}

/// Returns whether other records of the client port are found through this one.
#[inline(always)]
fn has_siblings<F: Tables>(mut key: FlowKey<F::Addr>, first: Record<F>) -> bool {
    let mut index = 1_u32;
    while index <= table::LAST_INDEX && index <= first.highest() {
        key.index = index as u8;
        if table::get::<F>(&key).is_some() {
            return true;
        }
        index += 1;
    }
    false
}

#[inline(always)]
fn report<F: Tables>(visited: u32, expired: u32) {
    if let Some(sweep) = sweeps::sweep::<F>() {
        // SAFETY: a row of an array lives as long as the program, and only one
        // sweep runs at a time.
        unsafe {
            *sweep = Sweep {
                flows: visited.wrapping_sub(expired),
                expired,
            };
        }
    }
}

#[inline(always)]
fn report_replies<F: Tables>(count: u32) {
    if let Some(replies) = sweeps::swept_replies::<F>() {
        // SAFETY: as in `report`.
        unsafe { *replies = count };
    }
}
