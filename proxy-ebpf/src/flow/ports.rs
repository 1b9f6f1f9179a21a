//! Ports of masqueraded flows, and of those whose port changes between the hooks.
//!
//! The reply tuple is entered in `MASQ` before the flow's record names it, and
//! only if nobody has it yet, so two flows never share one (E20).

use aya_ebpf::{Global, bindings::__sk_buff, cty::c_void};
use proxy_common::{
    counter::Counter,
    family::{V4, V6},
    flow::{Flow, FlowKey},
    masquerade::{MasqueradeKey, PortRange, Probes},
    net::{AddrV4, AddrV6, BePort},
};

use crate::{
    counters::count,
    flow::{
        foreign,
        record::{self, Record},
        reply_tuple,
        table::{self, Remove},
    },
    lookup::{backend::Hash, sockets::Sockets},
    maps::{
        prefilter, sweeps,
        tables::{self, Tables},
    },
    packet::{
        barrier::{masked, opaque},
        headers::Headers,
        skb::Skb,
    },
};

/// Ports that are looked at before the flow of one of them has to give way.
const PROBES: u32 = 16;
/// Rounds of 64 looks before a new flow is refused. With 60,000 of 64,512 ports
/// in use, one flow in a hundred million finds none.
const ROUNDS: u32 = 4;

/// Worth of a port that its holder keeps.
const IN_USE: u32 = 0;
/// Worth of a port that nobody has.
const FREE: u32 = u32::MAX;

/// The ports that the agent lets masqueraded flows have.
#[unsafe(no_mangle)]
static MASQUERADE_PORTS: Global<u32> = Global::new(PortRange::UNPRIVILEGED.to_bits());

/// The masquerade port of the flow with this key and record for the masquerade address in
/// the reply tuple; takes a free one on its first packet.
#[inline(never)]
pub fn allocate<F: Ports>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    key: &FlowKey<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    record: Record<F>,
) -> Option<BePort> {
    prefilter::note_masquerade::<F>(&reply.masquerade_addr);
    let flow = record.flow();
    if flow.masquerade_port != BePort::ZERO {
        return Some(flow.masquerade_port);
    }
    ask_for::<F>(headers, reply, record);
    // A process of this host that keeps its address keeps the port that it has
    // between the hooks.
    let same_address = flow.flags & Flow::<F::Addr>::HOST != 0 && reply.masquerade_addr == key.addr;
    let port = if same_address && F::claim(*skb, key, reply) {
        reply.masquerade_port
    } else {
        free_port::<F>(skb, headers, key, reply, flow.last_seen)?
    };
    // Two CPUs that get here together write the same values, because the one that came
    // second finds the first one's claim to be its own.
    record.set_masquerade(&reply.masquerade_addr, port);
    Some(port)
}

/// Gives a masqueraded flow another port between the hooks, because its client
/// uses its own towards the backend itself. `false`: none is free.
#[inline(never)]
pub fn set_apart<F: Ports>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    key: &FlowKey<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    record: Record<F>,
) -> bool {
    if changed_port::<F>(skb, headers, key, reply, record).is_none() {
        return false;
    }
    // After the port, without which replies would not be recognised.
    record.add_flags(Flow::<F::Addr>::CHANGE_PORT);
    true
}

/// The port of the client of the flow with this key and record between the hooks; takes a
/// free one if it has none. Sets the reply tuple.
#[inline(never)]
pub fn changed_port<F: Ports>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    key: &FlowKey<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    record: Record<F>,
) -> Option<BePort> {
    let flow = record.flow();
    prefilter::note_masquerade::<F>(&key.addr);
    if flow.changed_port != BePort::ZERO {
        return Some(flow.changed_port);
    }
    reply.masquerade_addr = key.addr;
    ask_for::<F>(headers, reply, record);
    let port = free_port::<F>(skb, headers, key, reply, flow.last_seen)?;
    // Two CPUs write the same value, as in `allocate`.
    record.set_changed_port(port);
    Some(port)
}

/// Makes the reply tuple, which has its masquerade address, the one that the flow would
/// have with the packet's port.
#[inline(always)]
fn ask_for<F: Tables>(
    headers: &Headers<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    record: Record<F>,
) {
    let flow = record.flow();
    reply.backend_addr = flow.backend_addr;
    reply.backend_port = flow.backend_port;
    reply.masquerade_port = headers.src_port;
    reply.protocol = headers.ip.protocol;
    reply.zero = [0; 3];
}

/// Claims a port for the reply tuple of the flow with this key: one that nobody has, else one that its holder needs no more. `time` is that of the flow, for two
/// CPUs with a packet of it look at the same ports. Inlined: calls go eight deep
/// at most.
#[inline(always)]
fn free_port<F: Ports>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    key: &FlowKey<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    time: u32,
) -> Option<BePort> {
    let mut search = Search {
        reply: *reply,
        probes: Probes::new(F::hash(headers), time),
        opens: u32::from(headers.opens_connection() || !headers.ip.protocol.has_connections()),
        tried: 0,
        best: IN_USE,
        port: 0,
    };
    let mut round = 0;
    while round < ROUNDS {
        search.tried = 0;
        search.best = IN_USE;
        sweeps::up_to_64_times(F::visit(), &mut search);
        reply.masquerade_port = BePort::new(search.port as u16);
        if search.best != IN_USE
            && (search.best == FREE || opaque(take_over::<F>(reply)))
            && F::claim(*skb, key, reply)
        {
            return Some(reply.masquerade_port);
        }
        round += 1;
    }
    None
}

/// A search for a port. On the stack, where the helper that calls back wants it.
#[repr(C)]
pub struct Search<A> {
    /// The tuple that needs a port.
    reply: MasqueradeKey<A>,
    probes: Probes,
    /// Whether the packet may open a flow, for which others give way.
    opens: u32,
    /// Ports that were looked at.
    tried: u32,
    /// The best of them, and what it is worth: [`FREE`], or one more than the time
    /// that a flow has been idle which may lose it, or [`IN_USE`].
    best: u32,
    port: u32,
}

/// Returns whether there is no need to look further.
#[inline(always)]
fn look_at_next_port<F: Tables>(search: &mut Search<F::Addr>) -> bool {
    let range = PortRange::from_bits(MASQUERADE_PORTS.load());
    let port = range.nth(search.probes.next());
    let reply = MasqueradeKey {
        masquerade_port: BePort::new(port),
        ..search.reply
    };
    let worth = worth::<F>(&reply, search.opens != 0);
    if worth > search.best {
        search.best = worth;
        search.port = u32::from(port);
    }
    search.tried += 1;
    search.best == FREE || search.best != IN_USE && search.tried >= PROBES
}

/// Returns the worth of a port to a flow that needs one.
#[inline(always)]
fn worth<F: Tables>(reply: &MasqueradeKey<F::Addr>, opens: bool) -> u32 {
    if prefilter::may_be_node_port::<F>(reply.masquerade_port, reply.protocol) {
        return IN_USE;
    }
    // SAFETY: read at once, and the flow it names is compared with the tuple.
    let Some(holder) = (unsafe { F::masquerades().get(reply) }) else {
        return if foreign::has_reply::<F>(reply) {
            IN_USE
        } else {
            FREE
        };
    };
    if !opens {
        return IN_USE;
    }
    let Some(record) = table::get::<F>(holder) else {
        return FREE - 1;
    };
    let flow = record.flow();
    // One that does not name the tuple may be about to.
    if !reply_tuple::has_reply::<F>(holder, flow, reply)
        || !record::may_give_way(reply.protocol, flow)
    {
        return IN_USE;
    }
    record::idle(flow).saturating_add(1).min(FREE - 1)
}

/// Ends the flow that holds the reply tuple, unless it has come to need it meanwhile.
#[inline(never)]
fn take_over<F: Remove>(reply: &MasqueradeKey<F::Addr>) -> bool {
    // SAFETY: copied at once, and the flow it names is compared with the tuple.
    let Some(holder) = (unsafe { F::masquerades().get(reply) }).copied() else {
        return true;
    };
    if let Some(record) = table::get::<F>(&holder) {
        let flow = record.flow();
        if !reply_tuple::has_reply::<F>(&holder, flow, reply)
            || !record::may_give_way(reply.protocol, flow)
        {
            return false;
        }
        F::remove(&holder);
    } else {
        let _ = F::masquerades().remove(reply);
    }
    count(Counter::MasqueradeTakenOver);
    true
}

/// Takes the reply tuple for the flow with this key, unless another flow or a socket of
/// this host has it.
#[inline(always)]
fn claim<F: Tables + Sockets>(
    skb: Skb,
    client: &FlowKey<F::Addr>,
    reply: &MasqueradeKey<F::Addr>,
) -> bool {
    // On the stack: Linux 6.1 takes neither from memory that is lent.
    let (reply, client) = (*reply, *client);
    let (reply, client) = (&reply, &client);
    if F::masquerades()
        .insert(reply, client, tables::BPF_NOEXIST)
        .is_err()
    {
        // SAFETY: the value is compared at once.
        let Some(holder) = (unsafe { F::masquerades().get(reply) }) else {
            return false;
        };
        return holder.addr == client.addr
            && holder.port == client.port
            && holder.index == client.index;
    }
    if F::has_socket(skb, reply) {
        let _ = F::masquerades().remove(reply);
        return false;
    }
    true
}

/// The look at one port, by family: a function for the kernel to call, which must
/// not be generic to keep its symbol, and functions that the verifier looks at once.
pub trait Ports: Remove + Hash + Sockets {
    /// Calls [`Ports::look_at_next_port`] for the kernel.
    fn visit() -> *mut c_void;
    /// Looks at one more port. Whether there is no need to look further.
    fn look_at_next_port(search: &mut Search<Self::Addr>) -> bool;
    /// Takes the reply tuple for the flow with this key, unless another flow or a socket
    /// of this host has it.
    fn claim(skb: Skb, key: &FlowKey<Self::Addr>, reply: &MasqueradeKey<Self::Addr>) -> bool;
}

macro_rules! family_ports {
    ($family:ident, $addr:ident, $visit:ident, $look_at_next_port:ident, $claim:ident) => {
        extern "C" fn $visit(
            _map: *mut c_void,
            _key: *const u32,
            _value: *mut u32,
            search: *mut Search<$addr>,
        ) -> i64 {
            // SAFETY: the helper passes the state that it was given.
            $family::look_at_next_port(unsafe { &mut *search }).into()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look_at_next_port(search: *mut Search<$addr>) -> u32 {
            // SAFETY: the verifier sees to it that this is null or valid, and the
            // caller has lent it. The same below.
            unsafe { search.as_mut() }
                .map_or(0, |search| look_at_next_port::<$family>(search).into())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(
            skb: *mut __sk_buff,
            key: *const FlowKey<$addr>,
            reply: *const MasqueradeKey<$addr>,
        ) -> u32 {
            // SAFETY: see above.
            match unsafe { (key.as_ref(), reply.as_ref()) } {
                (Some(key), Some(reply)) => {
                    claim::<$family>(Skb::of_context(skb), key, reply).into()
                }
                _ => 0,
            }
        }

        impl Ports for $family {
            #[inline(always)]
            fn visit() -> *mut c_void {
                $visit as *mut c_void
            }
            #[inline(always)]
            fn look_at_next_port(search: &mut Search<$addr>) -> bool {
                masked::<1>($look_at_next_port(search)) != 0
            }
            #[inline(always)]
            fn claim(skb: Skb, key: &FlowKey<$addr>, reply: &MasqueradeKey<$addr>) -> bool {
                $claim(skb.raw(), key, reply) != 0
            }
        }
    };
}

family_ports!(V4, AddrV4, visit_v4, look_at_next_port_v4, claim_v4);
family_ports!(V6, AddrV6, visit_v6, look_at_next_port_v6, claim_v6);
