//! The flow table: find flows, keep them up to date, remove them.

use core::ptr::NonNull;
use proxy_common::{
    family::{V4, V6},
    flow::{Flow, FlowKey, state},
    masquerade::MasqueradeKey,
    net::{AddrV4, AddrV6, BePort, Protocol},
};

use crate::{
    clock::now,
    lookup::backend,
    maps::{node, tables::Tables},
    packet::{
        barrier::masked,
        headers::{Headers, tcp},
    },
};

/// A record in the table. It stays readable for the program's run; one that
/// another CPU removes meanwhile may come to hold another flow, so readers
/// compare what they looked for.
pub type Record<F> = NonNull<Flow<<F as proxy_common::family::Family>::Addr>>;

/// The key under which this packet's sender has its flows.
#[inline(always)]
pub fn client_key<F: Tables>(headers: &Headers<F::Addr>) -> FlowKey<F::Addr> {
    FlowKey::new(headers.ip.src, headers.src_port, headers.ip.protocol)
}

/// The key under which this packet's receiver has its flows.
#[inline(always)]
pub fn reply_key<F: Tables>(headers: &Headers<F::Addr>) -> FlowKey<F::Addr> {
    FlowKey::new(headers.ip.dst, headers.dst_port, headers.ip.protocol)
}

/// The record of this very key.
#[inline(always)]
pub fn get<F: Tables>(key: &FlowKey<F::Addr>) -> Option<Record<F>> {
    NonNull::new(F::flows().get_ptr_mut(key)?)
}

/// The client's flow to this frontend. Sets the key's index to it.
#[inline(never)]
pub fn to_frontend<F: Tables>(
    key: &mut FlowKey<F::Addr>,
    addr: &F::Addr,
    port: BePort,
) -> Option<Record<F>> {
    find::<F>(key, |flow| is_to::<F>(flow, addr, port))
}

/// The record of this very key, if it is the client's flow to this frontend: two
/// packets that open flows at the same time may have chosen one key.
#[inline(always)]
pub fn opened<F: Tables>(
    key: &FlowKey<F::Addr>,
    addr: &F::Addr,
    port: BePort,
) -> Option<Record<F>> {
    // SAFETY: see `Record`.
    get::<F>(key).filter(|record| is_to::<F>(unsafe { record.as_ref() }, addr, port))
}

#[inline(always)]
fn is_to<F: Tables>(flow: &Flow<F::Addr>, addr: &F::Addr, port: BePort) -> bool {
    flow.frontend_port == port
        && flow.frontend_addr == *addr
        && flow.flags & Flow::<F::Addr>::OUTGOING == 0
}

/// The client's flow to this backend that needs no other port. Sets the key's
/// index to it.
#[inline(never)]
pub fn to_backend<F: Tables>(
    key: &mut FlowKey<F::Addr>,
    addr: &F::Addr,
    port: BePort,
) -> Option<Record<F>> {
    find::<F>(key, |flow| {
        flow.backend_port == port
            && flow.backend_addr == *addr
            && flow.flags & Flow::<F::Addr>::CHANGE_PORT == 0
    })
}

#[inline(always)]
fn find<F: Tables>(
    key: &mut FlowKey<F::Addr>,
    matches: impl Fn(&Flow<F::Addr>) -> bool,
) -> Option<Record<F>> {
    key.index = 0;
    let first = get::<F>(key)?;
    // SAFETY: see `Record`.
    if matches(unsafe { first.as_ref() }) {
        return Some(first);
    }
    // A counter of its own: the verifier does not follow one in memory.
    let mut index = 1_u32;
    while index <= LAST_INDEX && index <= highest::<F>(first) {
        key.index = index as u8;
        if let Some(record) = get::<F>(key) {
            // SAFETY: see `Record`.
            if matches(unsafe { record.as_ref() }) {
                return Some(record);
            }
        }
        index += 1;
    }
    None
}

/// The highest index in use for a client port, from its first record. Volatile,
/// so that loops are seen to end at [`LAST_INDEX`]: the compiler would fold the
/// two bounds into one that the verifier does not understand.
#[inline(always)]
pub fn highest<F: Tables>(first: Record<F>) -> u32 {
    // SAFETY: see `Record`.
    u32::from(unsafe { (&raw const (*first.as_ptr()).highest).read_volatile() })
}

/// Highest index of a client port's records.
pub const LAST_INDEX: u32 = FlowKey::<AddrV4>::MAX_INDEX as u32;

/// Direction of a packet within its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToBackend,
    ToClient,
}

/// Notes that a packet of the flow passed. Writes only what changes: a flow's
/// cache line stays shared between the CPUs that serve its two directions.
///
/// Nobody has checked a packet that has just come in: a reset that is not
/// followed by resets alone was not believed, and a SYN on a connection that is
/// open says nothing about it until the backend answers.
#[inline(always)]
pub fn touch<F: Tables>(record: Record<F>, headers: &Headers<F::Addr>, direction: Direction) {
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
    let flow = record.as_ptr();
    // SAFETY: see `Record`.
    let claims = direction == Direction::ToBackend
        && headers.opens_connection()
        && is_open::<F>(unsafe { &*flow }, headers);
    let disproves = bits & (state::BEYOND_SYN | state::RST) == state::BEYOND_SYN;
    let now = now();
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
pub fn touch_by_client<F: Tables>(record: Record<F>, headers: &Headers<F::Addr>) {
    // SAFETY: see `Record`.
    let state = unsafe { record.as_ref() }.client_state;
    if headers.tcp_flags & tcp::RST == 0 || state & state::LEAVES == 0 {
        touch::<F>(record, headers, Direction::ToBackend);
    }
}

/// Notes that a packet of the client's leaves for the flow's backend: that such packets
/// do, and what nobody has checked before.
#[inline(always)]
pub fn leave<F: Tables>(record: Record<F>, headers: &Headers<F::Addr>) {
    let bit = if headers.opens_connection() {
        state::LEAVES
    } else if headers.tcp_flags & tcp::RST != 0 {
        state::RST
    } else {
        return;
    };
    // SAFETY: see `Record`; a one-byte store.
    unsafe { (*record.as_ptr()).client_state |= bit }
}

/// The same for a packet that keeps its source.
#[inline(always)]
pub fn leave_unchanged<F: Tables>(headers: &Headers<F::Addr>) {
    let changes =
        Flow::<F::Addr>::MASQUERADE | Flow::<F::Addr>::CHANGE_PORT | Flow::<F::Addr>::OUTGOING;
    if (headers.opens_connection() || headers.tcp_flags & tcp::RST != 0)
        && let Some(record) = get::<F>(&client_key::<F>(headers))
    {
        // SAFETY: see `Record`.
        let flow = unsafe { record.as_ref() };
        if flow.backend_port == headers.dst_port
            && flow.backend_addr == headers.ip.dst
            && flow.flags & changes == 0
        {
            leave::<F>(record, headers);
        }
    }
}

/// Whether both ends of a connection are done.
#[inline(always)]
pub fn is_closing<A>(flow: &Flow<A>) -> bool {
    flow.client_state & flow.backend_state & state::FIN != 0
        || (flow.client_state | flow.backend_state) & state::RST != 0
}

/// Whether a TCP connection is open, as far as both ends have told.
#[inline(always)]
fn is_open<F: Tables>(flow: &Flow<F::Addr>, headers: &Headers<F::Addr>) -> bool {
    headers.ip.protocol == Protocol::TCP
        && flow.client_state & state::BEYOND_SYN != 0
        && flow.backend_state & state::SEEN != 0
        && !is_closing(flow)
}

/// Whether no packet of the flow has passed for as long as a connection that is
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

/// Whether a port is still to be found for the flow.
#[inline(always)]
pub fn lacks_port<A>(flow: &Flow<A>) -> bool {
    flow.flags & Flow::<A>::MASQUERADE != 0 && flow.masquerade_port == BePort::ZERO
        || flow.flags & Flow::<A>::CHANGE_PORT != 0 && flow.changed_port == BePort::ZERO
}

/// Whether a flow may end before its time, for one that opens: it is over, or
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

/// Whether a packet towards the frontend must not follow the flow's record,
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

/// Whether a flow is to be compared with its frontend again: of protocols
/// without connections about once a second, because such a flow ends with its
/// frontend, however busy it is.
#[inline(always)]
pub fn is_due<F: Tables>(flow: &Flow<F::Addr>, headers: &Headers<F::Addr>) -> bool {
    !headers.ip.protocol.has_connections() && flow.last_seen != now()
}

/// Whether the backend accepts another connection than the flow's: the one
/// that the client asked it for itself (E13).
#[inline(always)]
pub fn is_foreign_reply<F: Tables>(flow: &Flow<F::Addr>, headers: &Headers<F::Addr>) -> bool {
    headers.accepts_connection() && flow.client_state & state::DIRECT != 0
}

/// The client asked this flow's backend for a connection of its own.
#[inline(always)]
pub fn mark_direct<F: Tables>(record: Record<F>) {
    let flow = record.as_ptr();
    // SAFETY: see `Record`; a one-byte store.
    unsafe { (*flow).client_state |= state::DIRECT }
}

/// Removes a record with all that belongs to it. Record 0 stays while others
/// of the client port are found through it, but matches nothing any more: its
/// flags are such that neither direction's packets follow it.
#[inline(always)]
fn remove_record<F: Tables>(key: FlowKey<F::Addr>) {
    let key = &key;
    let Some(record) = get::<F>(key) else {
        return;
    };
    if key.index != 0 || highest::<F>(record) == 0 {
        delete::<F>(key, record);
        return;
    }
    // SAFETY: see `Record`.
    forget_replies::<F>(key, unsafe { record.as_ref() });
    let flow = record.as_ptr();
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

/// Whether the record is a mere way to those with a higher index.
#[inline(always)]
pub fn is_vacant<A>(flow: &Flow<A>) -> bool {
    flow.frontend_port == BePort::ZERO
}

/// Removes a record and its reply tuples.
#[inline(always)]
pub fn delete<F: Tables>(key: &FlowKey<F::Addr>, record: Record<F>) {
    // SAFETY: see `Record`.
    forget_replies::<F>(key, unsafe { record.as_ref() });
    // Gone already is as good.
    let _ = F::flows().remove(key);
}

/// Removes a flow's reply tuples.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy would take stack"
)]
#[inline(always)]
pub fn forget_replies<F: Tables>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
    // The compiler would fill an array of zeros by a call, whose frame is one too many
    // for what packets of the host go through: older kernels round each frame up to 32.
    let [protocol, zero @ ..] = (masked::<0xff>(key.protocol.0.into()) as u32).to_le_bytes();
    // One key for both: each takes stack.
    let mut reply = MasqueradeKey {
        backend_addr: flow.backend_addr,
        masquerade_addr: flow.masquerade_addr,
        backend_port: flow.backend_port,
        masquerade_port: flow.masquerade_port,
        protocol: Protocol(protocol),
        zero,
    };
    if reply.masquerade_port != BePort::ZERO {
        let _ = F::masquerades().remove(&reply);
    }
    if flow.changed_port != BePort::ZERO {
        reply.masquerade_addr = key.addr;
        reply.masquerade_port = flow.changed_port;
        let _ = F::masquerades().remove(&reply);
    }
}

/// [`remove_record`] as a function that the verifier looks at once.
pub trait Remove: Tables {
    /// Removes the record of this key with all that belongs to it.
    fn remove(key: &FlowKey<Self::Addr>);
}

macro_rules! family_remove {
    ($family:ident, $addr:ident, $remove:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remove(key: *const FlowKey<$addr>) -> u32 {
            // SAFETY: the verifier sees to it that this is null or valid, and the
            // caller has lent it.
            if let Some(key) = unsafe { key.as_ref() } {
                remove_record::<$family>(*key);
            }
            0
        }

        impl Remove for $family {
            #[inline(always)]
            fn remove(key: &FlowKey<$addr>) {
                $remove(key);
            }
        }
    };
}

family_remove!(V4, AddrV4, remove_v4);
family_remove!(V6, AddrV6, remove_v6);
