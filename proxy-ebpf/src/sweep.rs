//! Removes idle flows, and reply tuples without a flow. Run by the agent every few
//! seconds; takes about 80 ns a record.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_for_each_map_elem};
use proxy_common::{
    config::{Config, ConfigFamily, Timeouts},
    counter::Counter,
    family::{V4, V6},
    flow::{Flow, FlowKey, state, ticks_from_seconds},
    masquerade::MasqueradeKey,
    net::Protocol,
};

use crate::{
    flow::{self, Record},
    masquerade,
    outcome::Outcome,
    tables::{self, Sweep, Tables},
};

/// Sweeps both families and reports in `SWEEPS`.
#[inline(always)]
pub fn run() -> i32 {
    sweep_v4();
    reap_v4();
    sweep_v6();
    reap_v6();
    Outcome::NEXT.action()
}

/// What the callback knows.
#[repr(C)]
struct State {
    timeouts: Timeouts,
    now: u32,
    expired: u32,
    pressed: u32,
    /// How long a lasting flow may be idle.
    patience: u32,
    /// The longest time that one is.
    longest_idle: u32,
}

/// Ticks that no sweep takes. A record that is further ahead of it says nonsense.
const LONGEST_SWEEP: u32 = 60;

/// Ticks that a lasting flow may be idle whatever happens: five minutes.
const LEAST_PATIENCE: u32 = ticks_from_seconds(300);

/// Ticks after its last packet when no CPU is about to complete a flow's record.
const SETTLED: u32 = 2;

/// Declares one family's sweep: the callback is a function of its own for the
/// kernel, and must not be generic to keep its symbol.
macro_rules! family_sweep {
    ($family:ident, $sweep:ident, $visit:ident, $pressed:ident, $reap:ident, $visit_reply:ident) => {
        #[inline(never)]
        fn $sweep() {
            let Some(config) = tables::config() else {
                return;
            };
            let mut state = State {
                timeouts: config.timeouts,
                now: flow::now(),
                expired: 0,
                pressed: config.flags & Config::$pressed,
                patience: u32::MAX,
                longest_idle: 0,
            };
            if state.pressed != 0 {
                state.patience = patience::<$family>();
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
            if let Some(longest) = tables::longest_idle::<$family>() {
                // SAFETY: as in `report`.
                unsafe { *longest = state.longest_idle };
            }
        }

        extern "C" fn $visit(
            _map: *mut c_void,
            key: *const FlowKey<<$family as proxy_common::family::Family>::Addr>,
            value: *mut Flow<<$family as proxy_common::family::Family>::Addr>,
            state: *mut State,
        ) -> i64 {
            // SAFETY: the helper passes valid pointers.
            let (key, flow, state) = unsafe { (*key, &*value, &mut *state) };
            if is_expired(&flow_age(flow), key.protocol, state) {
                expire::<$family>(key, state);
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

family_sweep!(V4, sweep_v4, visit_v4, PRESSED_V4, reap_v4, visit_reply_v4);
family_sweep!(V6, sweep_v6, visit_v6, PRESSED_V6, reap_v6, visit_reply_v6);

/// Whether a reply tuple is its holder's, or about to become so: it is entered
/// before the flow's record names it, while a packet of the flow is handled.
#[inline(always)]
fn is_held<F: Tables>(reply: &MasqueradeKey<F::Addr>, holder: &FlowKey<F::Addr>) -> bool {
    let Some(record) = flow::get::<F>(holder) else {
        return false;
    };
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    masquerade::has_reply::<F>(holder, flow, reply)
        || flow::lacks_port(flow) && flow::idle(flow) <= SETTLED
}

/// Removes a reply tuple, unless a flow came by that has it after all.
#[inline(always)]
fn reap<F: Tables>(reply: &MasqueradeKey<F::Addr>, holder: &FlowKey<F::Addr>) {
    let _ = F::masquerades().remove(reply);
    if is_held::<F>(reply, holder) {
        // Another flow may have it by now.
        let _ = F::masquerades().insert(reply, holder, tables::BPF_NOEXIST);
    }
    tables::count(Counter::MasqueradeReaped);
}

/// How long a lasting flow may be idle under pressure. Those that have been for
/// longest go first: each sweep halves the time, down to some minutes.
#[inline(always)]
fn patience<F: Tables>() -> u32 {
    let Some(longest) = tables::longest_idle::<F>() else {
        return u32::MAX;
    };
    // SAFETY: as in `report`.
    let half = unsafe { *longest } / 2;
    if half < LEAST_PATIENCE {
        LEAST_PATIENCE
    } else {
        half
    }
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

#[inline(always)]
fn is_expired(age: &Age, protocol: Protocol, sweep: &mut State) -> bool {
    let both = age.client_state & age.backend_state;
    let any = age.client_state | age.backend_state;
    let timeouts = &sweep.timeouts;
    let (timeout, lasting) = if protocol.has_connections() {
        if both & state::FIN != 0 || any & state::RST != 0 {
            (timeouts.tcp_closing, false)
        } else if age.client_state & state::BEYOND_SYN != 0 && age.backend_state & state::SEEN != 0
        {
            (timeouts.tcp_established, true)
        } else {
            (timeouts.tcp_opening, false)
        }
    } else if both & state::SEEN != 0 {
        (timeouts.other_replied, true)
    } else {
        (timeouts.other_unreplied, false)
    };
    let patience = if lasting {
        sweep.patience
    } else if sweep.pressed != 0 {
        timeouts.pressed
    } else {
        u32::MAX
    };
    let timeout = if patience < timeout {
        patience
    } else {
        timeout
    };
    // A packet may have moved `last_seen` past `now` while the sweep runs.
    let age = sweep.now.wrapping_sub(age.last_seen);
    let touched = age >= u32::MAX - LONGEST_SWEEP;
    if age > timeout && !touched {
        return true;
    }
    if lasting && !touched && age > sweep.longest_idle {
        sweep.longest_idle = age;
    }
    false
}

#[inline(always)]
fn expire<F: Tables + ConfigFamily>(key: FlowKey<F::Addr>, state: &mut State) {
    let Some(record) = flow::get::<F>(&key) else {
        return;
    };
    if key.index == 0 && has_siblings::<F>(key, record) {
        return;
    }
    flow::delete::<F>(&key, record);
    state.expired += 1;
    tables::count(Counter::FlowExpired);
}

/// Whether other records of the client port are found through this one.
#[inline(always)]
fn has_siblings<F: Tables>(mut key: FlowKey<F::Addr>, first: Record<F>) -> bool {
    let mut index = 1_u32;
    while index <= flow::LAST_INDEX && index <= flow::highest::<F>(first) {
        key.index = index as u8;
        if flow::get::<F>(&key).is_some() {
            return true;
        }
        index += 1;
    }
    false
}

#[inline(always)]
fn report<F: Tables>(visited: u32, expired: u32) {
    if let Some(sweep) = tables::sweep::<F>() {
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
    if let Some(replies) = tables::swept_replies::<F>() {
        // SAFETY: as in `report`.
        unsafe { *replies = count };
    }
}
