//! Removes idle flows. Run by the agent every few seconds; takes about 80 ns a
//! record.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_for_each_map_elem};
use proxy_common::{
    config::{Config, ConfigFamily, Timeouts},
    counter::Counter,
    family::{V4, V6},
    flow::{Flow, FlowKey, state},
    net::Protocol,
};

use crate::{
    flow::{self, Record},
    outcome::Outcome,
    tables::{self, Sweep, Tables},
};

/// Sweeps both families and reports in `SWEEPS`.
#[inline(always)]
pub fn run() -> i32 {
    sweep_v4();
    sweep_v6();
    Outcome::NEXT.action()
}

/// What the callback knows.
#[repr(C)]
struct State {
    timeouts: Timeouts,
    now: u32,
    expired: u32,
    pressed: u32,
}

/// Declares one family's sweep: the callback is a function of its own for the
/// kernel, and must not be generic to keep its symbol.
macro_rules! family_sweep {
    ($family:ident, $sweep:ident, $visit:ident, $pressed:ident) => {
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
            };
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
    };
}

family_sweep!(V4, sweep_v4, visit_v4, PRESSED_V4);
family_sweep!(V6, sweep_v6, visit_v6, PRESSED_V6);

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
fn is_expired(age: &Age, protocol: Protocol, sweep: &State) -> bool {
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
    let timeout = if sweep.pressed != 0 && !lasting && timeouts.pressed < timeout {
        timeouts.pressed
    } else {
        timeout
    };
    // A packet may have moved `last_seen` past `now` while the sweep runs.
    let age = sweep.now.wrapping_sub(age.last_seen);
    age > timeout && age < u32::MAX / 2
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
