//! Ports of masqueraded flows, and of those whose port changes between the hooks.
//!
//! The reply tuple is entered in `MASQ` before the flow's record names it, and
//! only if nobody has it yet, so two flows never share one (E20).

use aya_ebpf::{Global, bindings::__sk_buff, cty::c_void};
use proxy_common::{
    counter::Counter,
    family::{V4, V6},
    flow::Flow,
    masquerade::{MasqueradeKey, PortRange, Probes},
    net::{AddrV4, AddrV6, BePort},
};

use crate::{
    counters::count,
    flow::{
        record::{self, Record},
        reply_tuple,
        table::{self, Remove},
    },
    lookup::{backend::Hash, sockets::Sockets},
    maps::{
        prefilter,
        scratch::Scratch,
        sweeps,
        tables::{self, Tables},
    },
    packet::{
        barrier::{masked, opaque},
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

/// The masquerade port of the flow in `record`, whose key is in scratch
/// memory; takes a free one on its first packet.
#[inline(never)]
pub fn allocate<F: Ports>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
    addr: &F::Addr,
) -> Option<BePort> {
    prefilter::note_masquerade::<F>(addr);
    let flow = record.flow();
    if flow.masquerade_port != BePort::ZERO {
        return Some(flow.masquerade_port);
    }
    ask_for::<F>(scratch, record, addr);
    // A process of this host that keeps its address keeps the port that it has
    // between the hooks.
    let same_address = flow.flags & Flow::<F::Addr>::HOST != 0 && *addr == scratch.key.addr;
    let port = if same_address && F::claim(*skb, scratch) {
        scratch.reply.masquerade_port
    } else {
        free_port::<F>(skb, scratch, flow.last_seen)?
    };
    // Two CPUs that get here together write the same values, because the one that came
    // second finds the first one's claim to be its own.
    record.set_masquerade(addr, port);
    Some(port)
}

/// Gives a masqueraded flow another port between the hooks, because its client
/// uses its own towards the backend itself. `false`: none is free.
#[inline(never)]
pub fn set_apart<F: Ports>(skb: &Skb, scratch: &mut Scratch<F::Addr>, record: Record<F>) -> bool {
    if changed_port::<F>(skb, scratch, record).is_none() {
        return false;
    }
    // After the port, without which replies would not be recognised.
    record.add_flags(Flow::<F::Addr>::CHANGE_PORT);
    true
}

/// The port of the client of the flow in `record` between the hooks; takes a free
/// one if it has none.
#[inline(never)]
pub fn changed_port<F: Ports>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
) -> Option<BePort> {
    let flow = record.flow();
    let client = scratch.key.addr;
    prefilter::note_masquerade::<F>(&client);
    if flow.changed_port != BePort::ZERO {
        return Some(flow.changed_port);
    }
    ask_for::<F>(scratch, record, &client);
    let port = free_port::<F>(skb, scratch, flow.last_seen)?;
    // Two CPUs write the same value, as in `allocate`.
    record.set_changed_port(port);
    Some(port)
}

/// Sets the reply tuple in scratch memory to the one that the flow would have
/// with this address and the packet's port.
#[inline(always)]
fn ask_for<F: Tables>(scratch: &mut Scratch<F::Addr>, record: Record<F>, addr: &F::Addr) {
    let flow = record.flow();
    scratch.reply.backend_addr = flow.backend_addr;
    scratch.reply.masquerade_addr = *addr;
    scratch.reply.backend_port = flow.backend_port;
    scratch.reply.masquerade_port = scratch.headers.src_port;
    scratch.reply.protocol = scratch.key.protocol;
    scratch.reply.zero = [0; 3];
}

/// Claims a port for the reply tuple in scratch memory: one that nobody has,
/// else one that its holder needs no more. `time` is that of the flow, for two
/// CPUs with a packet of it look at the same ports. Inlined: calls go eight deep
/// at most.
#[inline(always)]
fn free_port<F: Ports>(skb: &Skb, scratch: &mut Scratch<F::Addr>, time: u32) -> Option<BePort> {
    let headers = &scratch.headers;
    let mut search = Search {
        reply: scratch.reply,
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
        scratch.reply.masquerade_port = BePort::new(search.port as u16);
        if search.best != IN_USE
            && (search.best == FREE || opaque(take_over::<F>(scratch)))
            && F::claim(*skb, scratch)
        {
            return Some(scratch.reply.masquerade_port);
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

/// What a port is worth to a flow that needs one.
#[inline(always)]
fn worth<F: Tables>(reply: &MasqueradeKey<F::Addr>, opens: bool) -> u32 {
    if prefilter::may_be_node_port::<F>(reply.masquerade_port, reply.protocol) {
        return IN_USE;
    }
    // SAFETY: read at once, and the flow it names is compared with the tuple.
    let Some(holder) = (unsafe { F::masquerades().get(reply) }) else {
        return FREE;
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

/// Ends the flow that holds the reply tuple in scratch memory, unless it has come
/// to need it meanwhile.
#[inline(never)]
fn take_over<F: Remove>(scratch: &Scratch<F::Addr>) -> bool {
    let reply = &scratch.reply;
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

/// Takes the reply tuple in scratch memory for the flow there, unless another
/// flow or a socket of this host has it.
#[inline(always)]
fn claim<F: Tables + Sockets>(skb: Skb, scratch: &mut Scratch<F::Addr>) -> bool {
    let (key, client) = (scratch.reply, scratch.key);
    let (key, client) = (&key, &client);
    if F::masquerades()
        .insert(key, client, tables::BPF_NOEXIST)
        .is_err()
    {
        // SAFETY: the value is compared at once.
        let Some(holder) = (unsafe { F::masquerades().get(key) }) else {
            return false;
        };
        return holder.addr == client.addr
            && holder.port == client.port
            && holder.index == client.index;
    }
    if F::has_socket(skb, key) {
        let _ = F::masquerades().remove(key);
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
    /// Takes the reply tuple in scratch memory for the flow there, unless another
    /// flow or a socket of this host has it.
    fn claim(skb: Skb, scratch: &mut Scratch<Self::Addr>) -> bool;
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
        extern "C" fn $claim(skb: *mut __sk_buff, scratch: *mut Scratch<$addr>) -> u32 {
            // SAFETY: see above.
            unsafe { scratch.as_mut() }.map_or(0, |scratch| {
                claim::<$family>(Skb::of_context(skb), scratch).into()
            })
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
            fn claim(skb: Skb, scratch: &mut Scratch<$addr>) -> bool {
                $claim(skb.raw(), scratch) != 0
            }
        }
    };
}

family_ports!(V4, AddrV4, visit_v4, look_at_next_port_v4, claim_v4);
family_ports!(V6, AddrV6, visit_v6, look_at_next_port_v6, claim_v6);
