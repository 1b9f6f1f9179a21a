//! Records of the flow table: what they say of a flow, and how packets keep them up to
//! date.

use core::ptr::NonNull;

use proxy_common::{
    family::Family,
    flow::{Flow, state},
    net::{BePort, Protocol},
};

use crate::{
    clock::now,
    lookup::backend,
    maps::{node, tables::Tables},
    packet::headers::{Headers, tcp},
};

/// Direction of a packet within its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToBackend,
    ToClient,
}

/// A record in the table. It stays readable for the program's run; one that
/// another CPU removes meanwhile may come to hold another flow, so readers
/// compare what they looked for.
///
/// Each field is written by aligned stores of its own size, so that other CPUs see
/// the old value or the new one.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Record<F: Family>(NonNull<Flow<F::Addr>>);

impl<F: Tables> Record<F> {
    /// The record that a look-up returned.
    ///
    /// # Safety
    ///
    /// The pointer is one to a value of the flow table.
    #[inline(always)]
    pub unsafe fn new(flow: *mut Flow<F::Addr>) -> Option<Self> {
        NonNull::new(flow).map(Self)
    }

    /// The record's fields.
    #[inline(always)]
    pub fn flow<'a>(self) -> &'a Flow<F::Addr> {
        // SAFETY: a value of the table: see `Record`.
        unsafe { self.0.as_ref() }
    }

    /// The highest index in use for a client port, from its first record. Volatile,
    /// so that loops are seen to end at [`LAST_INDEX`]: the compiler would fold the
    /// two bounds into one that the verifier does not understand.
    ///
    /// [`LAST_INDEX`]: crate::flow::table::LAST_INDEX
    #[inline(always)]
    pub fn highest(self) -> u32 {
        // SAFETY: a value of the table; a load of one byte.
        u32::from(unsafe { (&raw const (*self.0.as_ptr()).highest).read_volatile() })
    }

    /// Makes this the highest index in use, unless there is a higher one.
    #[inline(always)]
    pub fn raise_highest(self, index: u8) {
        // SAFETY: see `Record`; a one-byte store.
        unsafe {
            let highest = &raw mut (*self.0.as_ptr()).highest;
            if *highest < index {
                *highest = index;
            }
        }
    }

    /// Notes that a packet of the flow passed. Writes only what changes: a flow's
    /// cache line stays shared between the CPUs that serve its two directions.
    ///
    /// Nobody has checked a packet that has just come in: a reset that is not
    /// followed by resets alone was not believed, and a SYN on a connection that is
    /// open says nothing about it until the backend answers.
    #[inline(always)]
    pub fn touch(self, headers: &Headers<F::Addr>, direction: Direction) {
        let mut bits = state::SEEN;
        if headers.ip.protocol.has_connections() {
            if headers.tcp_flags & tcp::SYN == 0 {
                bits |= state::BEYOND_SYN;
            }
            if headers.tcp_flags & tcp::FIN != 0 {
                bits |= state::FIN;
            }
            if headers.tcp_flags & tcp::RST != 0 {
                bits |= state::RST;
            }
        }
        let claims = direction == Direction::ToBackend
            && headers.opens_connection()
            && is_open::<F>(self.flow(), headers);
        let disproves = bits & (state::BEYOND_SYN | state::RST) == state::BEYOND_SYN;
        let now = now();
        let flow = self.0.as_ptr();
        // SAFETY: see `Record`; each field is written by aligned stores of its own
        // size.
        unsafe {
            if disproves && ((*flow).client_state | (*flow).backend_state) & state::RST != 0 {
                (*flow).client_state &= !state::RST;
                (*flow).backend_state &= !state::RST;
            }
            let seen = match direction {
                Direction::ToBackend => &raw mut (*flow).client_state,
                Direction::ToClient => &raw mut (*flow).backend_state,
            };
            if *seen & bits != bits {
                *seen |= bits;
            }
            if !claims && (*flow).last_seen != now {
                (*flow).last_seen = now;
            }
            // What the backend accepts next is this connection.
            if direction == Direction::ToBackend
                && headers.opens_connection()
                && (*flow).client_state & state::DIRECT != 0
            {
                (*flow).client_state &= !state::DIRECT;
            }
        }
    }

    /// Notes a packet that came in from the flow's client. A reset that will be seen again
    /// where it leaves counts for nothing before: routing may drop it.
    #[inline(always)]
    pub fn touch_by_client(self, headers: &Headers<F::Addr>) {
        let state = self.flow().client_state;
        if headers.tcp_flags & tcp::RST == 0 || state & state::LEAVES == 0 {
            self.touch(headers, Direction::ToBackend);
        }
    }

    /// Notes that a packet of the client's leaves for the flow's backend: that such packets
    /// do, and what nobody has checked before.
    #[inline(always)]
    pub fn leave(self, headers: &Headers<F::Addr>) {
        if headers.opens_connection() {
            self.add_client_state(state::LEAVES);
        } else if headers.tcp_flags & tcp::RST != 0 {
            self.add_client_state(state::RST);
        }
    }

    /// Notes what the client did.
    #[inline(always)]
    pub fn add_client_state(self, bits: u8) {
        // SAFETY: see `Record`; a one-byte store.
        unsafe { (*self.0.as_ptr()).client_state |= bits }
    }

    /// Makes this a connection whose opening has just been seen.
    #[inline(always)]
    pub fn reopen(self) {
        let flow = self.0.as_ptr();
        // SAFETY: see `Record`; one-byte stores.
        unsafe {
            (*flow).client_state = state::BEYOND_SYN;
            (*flow).backend_state = 0;
        }
    }

    #[inline(always)]
    pub fn add_flags(self, flags: u8) {
        // SAFETY: see `Record`; a one-byte store.
        unsafe { (*self.0.as_ptr()).flags |= flags }
    }

    #[inline(always)]
    pub fn set_uplink(self, uplink: u32) {
        // SAFETY: see `Record`; an aligned store of four bytes.
        unsafe { (*self.0.as_ptr()).uplink = uplink }
    }

    /// Notes what replies to the flow are addressed to: the address before the port,
    /// because a port that is not zero says that both are there.
    #[inline(always)]
    pub fn set_masquerade(self, addr: &F::Addr, port: BePort) {
        let flow = self.0.as_ptr();
        // SAFETY: see `Record`; nobody reads the address before the port is there.
        unsafe {
            (&raw mut (*flow).masquerade_addr).write_volatile(*addr);
            (&raw mut (*flow).masquerade_port).write_volatile(port);
        }
    }

    /// Notes the port that the client has between the hooks.
    #[inline(always)]
    pub fn set_changed_port(self, port: BePort) {
        // SAFETY: see `Record`; an aligned store of two bytes.
        unsafe { (&raw mut (*self.0.as_ptr()).changed_port).write_volatile(port) }
    }

    /// Makes the record match nothing any more: its flags are such that neither
    /// direction's packets follow it.
    #[inline(always)]
    pub fn vacate(self) {
        let flow = self.0.as_ptr();
        // SAFETY: see `Record`; aligned stores of one and two bytes.
        unsafe {
            // No port tells: a packet may be addressed to port 0.
            (*flow).flags = Flow::<F::Addr>::CHANGE_PORT | Flow::<F::Addr>::OUTGOING;
            (*flow).masquerade_port = BePort::ZERO;
            (*flow).changed_port = BePort::ZERO;
            (*flow).backend_port = BePort::ZERO;
            (*flow).frontend_port = BePort::ZERO;
        }
    }
}

/// Returns whether both ends of a connection are done.
#[inline(always)]
pub fn is_closing<A>(flow: &Flow<A>) -> bool {
    flow.client_state & flow.backend_state & state::FIN != 0
        || (flow.client_state | flow.backend_state) & state::RST != 0
}

/// Returns whether a TCP connection is open, as far as both ends have told.
#[inline(always)]
fn is_open<F: Tables>(flow: &Flow<F::Addr>, headers: &Headers<F::Addr>) -> bool {
    headers.ip.protocol == Protocol::TCP
        && flow.client_state & state::BEYOND_SYN != 0
        && flow.backend_state & state::SEEN != 0
        && !is_closing(flow)
}

/// Returns whether no packet of the flow has passed for as long as a connection that is
/// over is remembered.
#[inline(always)]
fn is_idle<A>(flow: &Flow<A>) -> bool {
    node::config()
        .is_none_or(|config| now().wrapping_sub(flow.last_seen) > config.timeouts.tcp_closing)
}

/// Ticks since the flow's last packet. None, if that came while `now` was read.
#[inline(always)]
pub fn idle<A>(flow: &Flow<A>) -> u32 {
    now().saturating_sub(flow.last_seen)
}

/// Returns whether a port is still to be found for the flow.
#[inline(always)]
pub fn lacks_port<A>(flow: &Flow<A>) -> bool {
    flow.flags & Flow::<A>::MASQUERADE != 0 && flow.masquerade_port == BePort::ZERO
        || flow.flags & Flow::<A>::CHANGE_PORT != 0 && flow.changed_port == BePort::ZERO
}

/// Returns whether a flow may end before its time, for one that opens: it is over, or
/// nobody has answered it for as long as it would have under pressure.
#[inline(always)]
pub fn may_give_way<A>(protocol: Protocol, flow: &Flow<A>) -> bool {
    let lasts = if protocol.has_connections() {
        if is_closing(flow) {
            return true;
        }
        flow.client_state & state::BEYOND_SYN
    } else {
        state::SEEN
    };
    let patience = node::config().map_or(u32::MAX, |config| config.timeouts.pressed);
    (lasts == 0 || flow.backend_state & state::SEEN == 0) && idle(flow) > patience
}

/// Returns whether a packet towards the frontend must not follow the flow's record,
/// but have a backend chosen anew.
#[inline(always)]
pub fn is_stale<F: Tables>(flow: &Flow<F::Addr>, headers: &Headers<F::Addr>) -> bool {
    if headers.ip.protocol.has_connections() {
        // Established connections are never moved (S79); one that opens on an
        // old record is another connection, unless that is open.
        headers.opens_connection()
            && (is_closing(flow)
                || !backend::is_serving::<F>(flow)
                    && (!is_open::<F>(flow, headers) || is_idle(flow)))
    } else {
        !backend::is_serving::<F>(flow)
    }
}

/// Returns whether a flow is to be compared with its frontend again: of protocols
/// without connections about once a second, because such a flow ends with its
/// frontend, however busy it is.
#[inline(always)]
pub fn is_due<F: Tables>(flow: &Flow<F::Addr>, headers: &Headers<F::Addr>) -> bool {
    !headers.ip.protocol.has_connections() && flow.last_seen != now()
}

/// Returns whether the backend accepts another connection than the flow's: the one
/// that the client asked it for itself (E13).
#[inline(always)]
pub fn is_foreign_reply<F: Tables>(flow: &Flow<F::Addr>, headers: &Headers<F::Addr>) -> bool {
    headers.accepts_connection() && flow.client_state & state::DIRECT != 0
}

/// Returns whether the record is a mere way to those with a higher index.
#[inline(always)]
pub fn is_vacant<A>(flow: &Flow<A>) -> bool {
    flow.frontend_port == BePort::ZERO
}
