//! Masquerading: backends that must see an address of this node.
//!
//! The reply tuple is entered in `MASQ` before the flow's record names it, and
//! only if nobody has it yet, so two flows never share one (E20).

use aya_ebpf::{
    Global,
    bindings::{bpf_sock, bpf_sock_tuple},
    cty::c_void,
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use proxy_common::{
    counter::Counter,
    family::{Family, V4, V6},
    flow::{Flow, FlowKey},
    masquerade::{MasqueradeKey, PortRange, Probes},
    net::{AddrV4, AddrV6, Address as _, BePort, Protocol},
};

use crate::{
    flow::{
        fragment::{self, Hook},
        open::Opened,
        outgoing,
        record::{self, Direction, Record},
    },
    hooks::host,
    maps::tables::{self, Scratch, Tables},
    packet::{
        barrier::opaque,
        hint::{self, Hint},
        parse::{Headers, IpHeader},
        rewrite::Side,
        skb::Skb,
        verdict::{Fault, Outcome},
    },
    reply::refuse::{self, Refusal, To},
    route::{self, Route},
    subprograms::Subprograms as _,
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

/// `BPF_TCP_LISTEN`.
const TCP_LISTEN: u32 = 10;
/// "The network namespace of this device", as the socket look-ups spell it.
const CURRENT_NETNS: u64 = u64::MAX;

/// Client to backend at the backend's device: src := an address of this node.
/// `None`: the packet belongs to no masqueraded flow.
#[inline(never)]
pub fn forward<F: IpHeader + Route>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    let headers = &scratch.headers;
    scratch.key = record::client_key::<F>(headers);
    let record = match record::to_backend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port)
    {
        Some(record) => record,
        None => with_changed_port::<F>(scratch)?,
    };
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    let outgoing = flow.flags & Flow::<F::Addr>::OUTGOING != 0;
    if flow.flags & Flow::<F::Addr>::MASQUERADE == 0
        || outgoing && !outgoing::leaves::<F>(&scratch.headers, record)
    {
        return None;
    }
    if !outgoing {
        record::leave::<F>(record, &scratch.headers);
    }
    let mut addr = flow.masquerade_addr;
    if !outgoing && flow.masquerade_port == BePort::ZERO {
        route::masquerade_source::<F>(skb, scratch);
        addr = scratch.reply.masquerade_addr;
        if addr.is_zero() {
            return Some(Outcome::drop(Counter::MasqueradeNoAddress));
        }
    }
    let Some(port) = allocate::<F>(skb, scratch, record, &addr) else {
        // Of a process of the host the answer would have to look like the frontend
        // 's; it was refused before, where it got its changed port.
        return Some(if flow.flags & Flow::<F::Addr>::HOST == 0 && !outgoing {
            refuse::answer::<F>(skb, scratch, Opened::PortsExhausted, To::Client)
        } else {
            Outcome::drop(Counter::MasqueradePortsExhausted)
        });
    };
    fragment::remember::<F>(&scratch.headers, Hook::Egress);
    Some(
        match F::rewrite(*skb, &mut scratch.headers, Side::Source, &addr, port) {
            Ok(()) => Outcome::NEXT,
            Err(fault) => fault.into(),
        },
    )
}

/// The masquerade port of the flow in `record`, whose key is in scratch
/// memory; takes a free one on its first packet.
#[inline(never)]
pub fn allocate<F: IpHeader + Sockets>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
    addr: &F::Addr,
) -> Option<BePort> {
    tables::note_masquerade::<F>(addr);
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
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
    // The address before the port: a port that is not zero says that both are
    // there.
    // SAFETY: see `Record`; two CPUs that get here together write the same
    // values, because the one that came second finds the first one's claim to
    // be its own.
    unsafe {
        let flow = record.as_ptr();
        (&raw mut (*flow).masquerade_addr).write_volatile(*addr);
        (&raw mut (*flow).masquerade_port).write_volatile(port);
    }
    Some(port)
}

/// Gives a packet of a client the port that its flow has between the hooks: the
/// client's own, unless another flow needs that one, or a connection that a
/// process of this host makes itself.
#[inline(never)]
pub fn change_port<F: IpHeader + Sockets + Refusal>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
    to: To,
) -> Result<(), Outcome> {
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    if flow.flags & Flow::<F::Addr>::CHANGE_PORT == 0 {
        return Ok(());
    }
    let client = scratch.key.addr;
    let Some(port) = changed_port::<F>(skb, scratch, record) else {
        let refused = refuse::answer::<F>(skb, scratch, Opened::PortsExhausted, to);
        return Err(refused);
    };
    F::rewrite(*skb, &mut scratch.headers, Side::Source, &client, port).map_err(Outcome::from)
}

/// Gives a masqueraded flow another port between the hooks, because its client
/// uses its own towards the backend itself. `false`: none is free.
#[inline(never)]
pub fn set_apart<F: IpHeader + Sockets>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
) -> bool {
    if changed_port::<F>(skb, scratch, record).is_none() {
        return false;
    }
    // After the port, without which replies would not be recognised.
    // SAFETY: see `Record`; a one-byte store.
    unsafe { (*record.as_ptr()).flags |= Flow::<F::Addr>::CHANGE_PORT };
    true
}

/// The port of the client of the flow in `record` between the hooks; takes a free
/// one if it has none.
#[inline(never)]
fn changed_port<F: IpHeader + Sockets>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
) -> Option<BePort> {
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    let client = scratch.key.addr;
    tables::note_masquerade::<F>(&client);
    if flow.changed_port != BePort::ZERO {
        return Some(flow.changed_port);
    }
    ask_for::<F>(scratch, record, &client);
    let port = free_port::<F>(skb, scratch, flow.last_seen)?;
    // SAFETY: see `Record`; two CPUs write the same value, as in `allocate`.
    unsafe { (&raw mut (*record.as_ptr()).changed_port).write_volatile(port) };
    Some(port)
}

/// Sets the reply tuple in scratch memory to the one that the flow would have
/// with this address and the packet's port.
#[inline(always)]
fn ask_for<F: Tables>(scratch: &mut Scratch<F::Addr>, record: Record<F>, addr: &F::Addr) {
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
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
fn free_port<F: IpHeader + Sockets>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    time: u32,
) -> Option<BePort> {
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
        tables::up_to_64_times(F::visit(), &mut search);
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

/// The look at one port, by family: a function for the kernel to call, which must
/// not be generic to keep its symbol.
pub trait Visit: Tables {
    fn visit() -> *mut c_void;
}

macro_rules! family_search {
    ($family:ident, $visit:ident) => {
        extern "C" fn $visit(
            _map: *mut c_void,
            _key: *const u32,
            _value: *mut u32,
            search: *mut Search<<$family as Family>::Addr>,
        ) -> i64 {
            // SAFETY: the helper passes the state that it was given.
            $family::look_at_next_port(unsafe { &mut *search }).into()
        }

        impl Visit for $family {
            #[inline(always)]
            fn visit() -> *mut c_void {
                $visit as *mut c_void
            }
        }
    };
}

family_search!(V4, visit_v4);
family_search!(V6, visit_v6);

/// Whether there is no need to look further.
#[inline(always)]
pub fn look_at_next_port<F: Tables>(search: &mut Search<F::Addr>) -> bool {
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
    if tables::may_be_node_port::<F>(reply.masquerade_port, reply.protocol) {
        return IN_USE;
    }
    // SAFETY: read at once, and the flow it names is compared with the tuple.
    let Some(holder) = (unsafe { F::masquerades().get(reply) }) else {
        return FREE;
    };
    if !opens {
        return IN_USE;
    }
    let Some(record) = record::get::<F>(holder) else {
        return FREE - 1;
    };
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    // One that does not name the tuple may be about to.
    if !has_reply::<F>(holder, flow, reply) || !record::may_give_way(reply.protocol, flow) {
        return IN_USE;
    }
    record::idle(flow).saturating_add(1).min(FREE - 1)
}

/// Ends the flow that holds the reply tuple in scratch memory, unless it has come
/// to need it meanwhile.
#[inline(never)]
fn take_over<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    let reply = &scratch.reply;
    // SAFETY: copied at once, and the flow it names is compared with the tuple.
    let Some(holder) = (unsafe { F::masquerades().get(reply) }).copied() else {
        return true;
    };
    if let Some(record) = record::get::<F>(&holder) {
        // SAFETY: see `Record`.
        let flow = unsafe { record.as_ref() };
        if !has_reply::<F>(&holder, flow, reply) || !record::may_give_way(reply.protocol, flow) {
            return false;
        }
        F::remove(&holder);
    } else {
        let _ = F::masquerades().remove(reply);
    }
    tables::count(Counter::MasqueradeTakenOver);
    true
}

/// Takes the reply tuple in scratch memory for the flow there, unless another
/// flow or a socket of this host has it.
#[inline(always)]
pub fn claim<F: IpHeader + Sockets>(skb: Skb, scratch: &mut Scratch<F::Addr>) -> bool {
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

/// Whether the packet in scratch memory is a reply that is translated by its
/// reply tuple.
#[inline(never)]
pub fn is_reply<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> bool {
    // SAFETY: see `Record`.
    client_of::<F>(scratch)
        .is_some_and(|record| unsafe { record.as_ref() }.flags & Flow::<F::Addr>::OUTGOING == 0)
}

/// Backend to masquerade address at the backend's device: dst := client, and
/// for a process of this host src := frontend. `None`: not a reply of a flow.
#[inline(never)]
pub fn reply<F: IpHeader>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    let skb = *skb;
    let record = client_of::<F>(scratch)?;
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    if flow.flags & Flow::<F::Addr>::OUTGOING != 0 {
        return outgoing::reply::<F>(skb, scratch, record);
    }
    hint::set(skb, Hint::Entered);
    if !is_masquerade::<F>(flow, &scratch.reply) {
        // A changed port is undone where the packet leaves: with the client's
        // own it would look like a reply of the client's other flow.
        return Some(Outcome::NEXT);
    }
    fragment::remember::<F>(&scratch.headers, Hook::Ingress);
    if flow.flags & Flow::<F::Addr>::HOST != 0 {
        return Some(to_host::<F>(&skb, scratch, record));
    }
    // The other half follows where the packet leaves towards the client.
    let (addr, port) = (scratch.key.addr, flow.port_between(scratch.key.port));
    Some(
        match F::rewrite(skb, &mut scratch.headers, Side::Destination, &addr, port) {
            Ok(()) => Outcome::NEXT,
            Err(fault) => fault.into(),
        },
    )
}

/// Replies that have to be recognised where they leave: those to a client whose
/// port was changed, and those of this host to itself.
#[inline(never)]
pub fn reply_at_egress<F: IpHeader>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    let record = client_of::<F>(scratch)?;
    fragment::remember_reply::<F>(&scratch.headers);
    Some(to_host::<F>(skb, scratch, record))
}

/// Gives a reply both addresses that the client expects, and to a process of
/// this host the device that it expects.
#[inline(never)]
fn to_host<F: IpHeader>(skb: &Skb, scratch: &mut Scratch<F::Addr>, record: Record<F>) -> Outcome {
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    let (frontend_addr, frontend_port) = (flow.frontend_addr, flow.frontend_port);
    let headers = &mut scratch.headers;
    record::touch::<F>(record, headers, Direction::ToClient);
    let (addr, port) = (scratch.key.addr, scratch.key.port);
    if F::rewrite(*skb, headers, Side::Destination, &addr, port).is_err()
        || F::rewrite(*skb, headers, Side::Source, &frontend_addr, frontend_port).is_err()
    {
        return Fault.into();
    }
    host::hand_back(*skb, flow)
}

/// The flow that the packet in scratch memory answers; its key is put there.
#[inline(always)]
fn client_of<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> Option<Record<F>> {
    let headers = &scratch.headers;
    scratch.reply = MasqueradeKey {
        backend_addr: headers.ip.src,
        masquerade_addr: headers.ip.dst,
        backend_port: headers.src_port,
        masquerade_port: headers.dst_port,
        protocol: headers.ip.protocol,
        zero: [0; 3],
    };
    client::<F>(scratch)
}

/// The flow whose packet to the backend, with a changed port, is the one in
/// scratch memory; its key is put there.
#[inline(always)]
fn with_changed_port<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> Option<Record<F>> {
    scratch.reply = request_tuple::<F>(&scratch.headers);
    if !tables::slow::may_be_masquerade::<F>(&scratch.reply.masquerade_addr) {
        return None;
    }
    let record = client::<F>(scratch)?;
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    (!is_masquerade::<F>(flow, &scratch.reply)).then_some(record)
}

/// Whether a flow may have changed the port of this packet to a backend.
#[inline(always)]
pub fn may_have_changed_port<F: IpHeader>(headers: &Headers<F::Addr>) -> bool {
    let key = request_tuple::<F>(headers);
    // SAFETY: only asks whether it is there.
    tables::may_be_masquerade::<F>(&key.masquerade_addr)
        && unsafe { F::masquerades().get(key) }.is_some()
}

/// The reply tuple of a flow whose packet to the backend is this one.
#[inline(always)]
pub fn request_tuple<F: IpHeader>(headers: &Headers<F::Addr>) -> MasqueradeKey<F::Addr> {
    MasqueradeKey {
        backend_addr: headers.ip.dst,
        masquerade_addr: headers.ip.src,
        backend_port: headers.dst_port,
        masquerade_port: headers.src_port,
        protocol: headers.ip.protocol,
        zero: [0; 3],
    }
}

/// Whether replies to the flow's masquerade address bear this tuple.
#[inline(always)]
pub fn is_masquerade<F: Tables>(flow: &Flow<F::Addr>, reply: &MasqueradeKey<F::Addr>) -> bool {
    flow.masquerade_addr == reply.masquerade_addr && flow.masquerade_port == reply.masquerade_port
}

/// The flow that has the reply tuple in scratch memory; its key is put there.
#[inline(never)]
pub fn client<F: Tables>(scratch: &mut Scratch<F::Addr>) -> Option<Record<F>> {
    let reply = &scratch.reply;
    // SAFETY: the value is copied at once, and the flow it names is compared
    // with the tuple below.
    scratch.key = *unsafe { F::masquerades().get(reply) }?;
    let record = record::get::<F>(&scratch.key)?;
    // SAFETY: see `Record`.
    has_reply::<F>(&scratch.key, unsafe { record.as_ref() }, reply).then_some(record)
}

/// Whether a reply tuple is one of this flow's.
#[inline(always)]
pub fn has_reply<F: Tables>(
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    reply: &MasqueradeKey<F::Addr>,
) -> bool {
    let changed = flow.changed_port == reply.masquerade_port && key.addr == reply.masquerade_addr;
    flow.backend_addr == reply.backend_addr && (changed || is_masquerade::<F>(flow, reply))
}

/// Sockets of this host, by family.
pub trait Sockets: Visit {
    /// Whether a socket of this host would take packets of this reply tuple.
    fn has_socket(skb: Skb, key: &MasqueradeKey<Self::Addr>) -> bool;
}

/// IPv4 part of `bpf_sock_tuple`.
#[repr(C)]
struct TupleV4 {
    src: AddrV4,
    dst: AddrV4,
    src_port: BePort,
    dst_port: BePort,
}

/// IPv6 part of `bpf_sock_tuple`.
#[repr(C)]
struct TupleV6 {
    src: AddrV6,
    dst: AddrV6,
    src_port: BePort,
    dst_port: BePort,
}

impl Sockets for V4 {
    #[inline(always)]
    fn has_socket(skb: Skb, key: &MasqueradeKey<AddrV4>) -> bool {
        let mut tuple = TupleV4 {
            src: key.backend_addr,
            dst: key.masquerade_addr,
            src_port: key.backend_port,
            dst_port: key.masquerade_port,
        };
        has_socket(skb, key.protocol, &raw mut tuple)
    }
}

impl Sockets for V6 {
    #[inline(always)]
    fn has_socket(skb: Skb, key: &MasqueradeKey<AddrV6>) -> bool {
        let mut tuple = TupleV6 {
            src: key.backend_addr,
            dst: key.masquerade_addr,
            src_port: key.backend_port,
            dst_port: key.masquerade_port,
        };
        has_socket(skb, key.protocol, &raw mut tuple)
    }
}

#[inline(always)]
fn has_socket<T>(skb: Skb, protocol: Protocol, tuple: *mut T) -> bool {
    let context = skb.raw().cast();
    let tuple = tuple.cast::<bpf_sock_tuple>();
    let size = size_of::<T>() as u32;
    // SAFETY: valid context and tuple of the stated size; a socket that is
    // returned is released exactly once.
    unsafe {
        if protocol == Protocol::TCP {
            let socket: *mut bpf_sock = bpf_skc_lookup_tcp(context, tuple, size, CURRENT_NETNS, 0);
            if socket.is_null() {
                return false;
            }
            // A listener does not mind: the tuple it would accept is ours only
            // for packets from this backend's port.
            let listens = (*socket).state == TCP_LISTEN;
            bpf_sk_release(socket.cast());
            !listens
        } else if protocol != Protocol::UDP {
            // Programs cannot look up sockets of other protocols.
            false
        } else {
            let socket = bpf_sk_lookup_udp(context, tuple, size, CURRENT_NETNS, 0);
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
            true
        }
    }
}
