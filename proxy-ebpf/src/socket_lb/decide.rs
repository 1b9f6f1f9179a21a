//! Whether a call is served here, and which backend it gets.

use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32,
    },
    programs::SockAddrContext,
};
use proxy_common::{
    backend::Backend,
    config::Config,
    family::{V4, V6},
    frontend::Frontend,
    net::{Address, BePort, Protocol},
    select,
    service::{SessionAffinity, SlotRange},
    socket::Peer,
};

use crate::{
    clock::now,
    lookup::{affinity, backend, client, frontend, listener},
    maps::{node, prefilter, tables::Tables},
    socket_lb::{
        address::{self, Wide},
        session_affinity::{self, Remembered},
    },
};

/// The number of backends that are tried when one is taken by another frontend of the
/// same socket.
pub const ATTEMPTS: u32 = 4;

/// The depth below the root down to which a cgroup is found among the exceptions.
const CGROUP_LEVELS: i32 = 12;

/// The decision about a call.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Decision {
    /// Not for a Service, or the packet path's.
    Leave,
    /// There is nothing to connect to.
    Refuse,
    /// It gets one of the target's backends.
    Serve,
}

/// The backends that a call which is served may get.
pub struct Target<A> {
    pub service: u32,
    pub range: SlotRange,
    /// Honoured only for frontends at this host's own addresses, whose packets
    /// meet no other hook.
    pub session_affinity: SessionAffinity,
    /// Whom affinity is for.
    pub client: A,
    pub protocol: Protocol,
    /// A number that differs with each call.
    pub random: u32,
}

impl<A: Address> Default for Target<A> {
    #[inline(always)]
    fn default() -> Self {
        Self {
            service: 0,
            range: SlotRange::reject(),
            session_affinity: SessionAffinity::NONE,
            client: A::ZERO,
            protocol: Protocol::ANY,
            random: 0,
        }
    }
}

/// Decides about a call to this address and port. `connects`: it is a
/// `connect`, whose translation lasts.
#[inline(always)]
pub fn decide<F: Wide>(
    ctx: &SockAddrContext,
    connects: bool,
    addr: &F::Addr,
    port: BePort,
    target: &mut Target<F::Addr>,
) -> Decision {
    let protocol = address::protocol(ctx);
    if port == BePort::ZERO || protocol != Protocol::TCP && protocol != Protocol::UDP {
        return Decision::Leave;
    }
    let loopback = F::is_loopback(addr);
    let may_be_ours = loopback
        || prefilter::may_be_frontend::<F>(addr)
        || prefilter::may_be_node_port::<F>(port, protocol);
    if !may_be_ours {
        return Decision::Leave;
    }
    let Some(config) = node::config() else {
        return Decision::Leave;
    };
    if config.flags & Config::LEAVE_NEW != 0 {
        return Decision::Leave;
    }
    // SAFETY: the program's own context.
    let host = unsafe { bpf_get_netns_cookie(address::raw(ctx)) } == config.netns_cookie;
    let (served, udp_by_packets) = if host {
        (Config::SOCKETS_HOST, Config::UDP_BY_PACKETS_HOST)
    } else {
        (Config::SOCKETS_PODS, Config::UDP_BY_PACKETS_PODS)
    };
    let is_served = config.flags & served != 0;
    if !host && (loopback || !is_served) || is_excepted(config) {
        return Decision::Leave;
    }
    let frontend = if loopback {
        loopback_port::<F>(addr, port, protocol)
    } else {
        frontend::exact::<F>(addr, port, protocol)
            .or_else(|| frontend::node_port::<F>(addr, port, protocol))
    };
    let Some(frontend) = frontend else {
        // What listens at an address of this node, or of its network namespace, answers to
        // its clients there.
        let is_here = loopback || is_own::<F>(addr) || F::bound_to(ctx) == *addr;
        return if is_served && !is_here && is_cluster_ip::<F>(addr) {
            Decision::Refuse
        } else {
            Decision::Leave
        };
    };
    let cluster_ip = frontend.kind == Frontend::CLUSTER_IP;
    let own = !loopback && is_own::<F>(addr);
    // Of pods, the packet path can tell whether a process of the node listens there.
    if own && cluster_ip && !host {
        return Decision::Leave;
    }
    // A cluster within a container may have the address, too.
    if (!host || own && cluster_ip) && listener::takes_call::<F>(ctx, addr, port, protocol) {
        return Decision::Leave;
    }
    // Packets of the node's own processes to its own addresses meet no hook.
    let has_packet_path = !host || !loopback && !own;
    if !is_served && has_packet_path {
        return Decision::Leave;
    }
    if protocol == Protocol::UDP
        && config.flags & udp_by_packets != 0
        && has_packet_path
        && (connects || address::is_connected_to(ctx, &F::wide(addr), port))
    {
        return Decision::Leave;
    }
    if has_packet_path && (host && is_bound::<F>(ctx) || connects && address::has_port(ctx)) {
        return Decision::Leave;
    }
    let session_affinity = affinity::of::<F>(frontend.service);
    if has_packet_path {
        // The client's address is not known before routing has chosen it (E17).
        if session_affinity.seconds != 0 || frontend.flags & Frontend::SOURCE_RANGES != 0 {
            return Decision::Leave;
        }
    } else {
        target.client = own_source::<F>(ctx, addr, loopback);
        if !client::is_admitted::<F>(frontend, &target.client, addr) {
            return Decision::Refuse;
        }
    }
    let local_policy = frontend.flags & Frontend::LOCAL_SET != 0;
    if !host
        && (local_policy && !cluster_ip || cluster_ip && config.flags & Config::MASQUERADE_ALL != 0)
    {
        return Decision::Leave;
    }
    let Some(range) = backend::slot_range::<F>(frontend.service, local_policy && cluster_ip) else {
        return Decision::Leave;
    };
    if range.count == 0 {
        return if range.first == SlotRange::DROP {
            // Nobody answers: the packet path's drop lets the call time out.
            Decision::Leave
        } else {
            Decision::Refuse
        };
    }
    target.service = frontend.service;
    target.range = range;
    target.session_affinity = session_affinity;
    target.protocol = protocol;
    // SAFETY: the helper takes nothing.
    target.random = unsafe { bpf_get_prandom_u32() };
    Decision::Serve
}

/// Returns whether the address is one of this node.
#[inline(never)]
fn is_own<F: Wide>(addr: &F::Addr) -> bool {
    client::local_addr::<F>(addr).is_some()
}

/// Returns whether a socket of the host is bound to what its packets would be freed from:
/// a device, which need not be the one that leads to the backend, or an address,
/// which the backend need not have a way to.
#[inline(always)]
fn is_bound<F: Wide>(ctx: &SockAddrContext) -> bool {
    address::is_bound_to_device(ctx) || !address::is_connected(ctx) && !F::bound_to(ctx).is_zero()
}

/// The address that this host's processes have towards one of its own: what the
/// socket is bound to, else that very address, as the kernel chooses it. All of
/// the loopback counts as one client.
#[inline(always)]
fn own_source<F: Wide>(ctx: &SockAddrContext, addr: &F::Addr, loopback: bool) -> F::Addr {
    if loopback {
        return F::LOOPBACK;
    }
    let bound = F::bound_to(ctx);
    if bound.is_zero() { *addr } else { bound }
}

/// The NodePort that this port of the loopback is, for this node's own
/// processes (E18).
#[inline(always)]
fn loopback_port<F: Wide>(addr: &F::Addr, port: BePort, protocol: Protocol) -> Option<Frontend> {
    // Connecting to the unspecified address means the loopback's.
    let addr = if addr.is_zero() { F::LOOPBACK } else { *addr };
    frontend::node_port::<F>(&addr, port, protocol)
}

/// Returns whether this is a cluster IP: a port that it does not have is refused (S46).
/// Ports of other addresses may be somebody else's (S48).
#[inline(always)]
fn is_cluster_ip<F: Tables>(addr: &F::Addr) -> bool {
    frontend::exact::<F>(addr, BePort::ZERO, Protocol::ANY)
        .is_some_and(|entry| entry.kind == Frontend::CLUSTER_IP)
}

/// Returns whether the process runs in a cgroup that the operator took out.
#[inline(always)]
fn is_excepted(config: &Config) -> bool {
    if config.flags & Config::SOCKETS_EXCEPTIONS == 0 {
        return false;
    }
    let mut level = 1;
    while level <= CGROUP_LEVELS {
        // SAFETY: the helper takes a number.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            return false;
        }
        if node::is_exception(cgroup) {
            return true;
        }
        level += 1;
    }
    false
}

/// The backend for a call to this frontend; another one for each attempt, if
/// there are so many.
#[inline(always)]
pub fn backend<F: Wide>(
    addr: &F::Addr,
    port: BePort,
    target: &Target<F::Addr>,
    attempt: u32,
) -> Option<Peer> {
    let remembered = Remembered {
        client: target.client,
        service: target.service,
        session_affinity: target.session_affinity,
    };
    let row = match session_affinity::recall::<F>(&remembered) {
        Some(row) if attempt == 0 => row,
        _ => row::<F>(target, attempt)?,
    };
    let backend = F::backends().get(row)?;
    let generation = backend.generation;
    let peer = Peer {
        frontend_addr: F::wide(addr),
        backend_addr: F::wide(&backend.addr),
        frontend_port: port,
        backend_port: backend.port,
        backend: row,
        generation,
        last_used: now(),
        protocol: target.protocol,
        flags: 0,
        zero: [0; 2],
    };
    // A task may be kept from its CPU for longer than a row is left alone
    // before it is used again.
    // SAFETY: a row of an array lives as long as the program; aligned words.
    let same = unsafe {
        (&raw const backend.service).read_volatile() == target.service
            && (&raw const backend.generation).read_volatile() == generation
    };
    if !same {
        return None;
    }
    session_affinity::remember::<F>(&remembered, row, generation, backend.epoch);
    Some(peer)
}

/// Any row of the target's, each equally likely (S38).
#[inline(always)]
fn row<F: Tables>(target: &Target<F::Addr>, attempt: u32) -> Option<u32> {
    let SlotRange { first, count } = target.range;
    let mut offset = select::slot(u64::from(target.random) << 32, count) + attempt;
    if offset >= count {
        offset %= count;
    }
    backend::in_slot::<F>(first.wrapping_add(offset)).map(|(row, _)| row)
}

/// Returns whether a socket's backend still serves the Service port it was chosen for
/// (S77).
#[inline(always)]
pub fn is_serving(peer: &Peer) -> bool {
    if peer.backend_addr.unmapped().is_some() {
        serves::<V4>(peer)
    } else {
        serves::<V6>(peer)
    }
}

#[inline(always)]
fn serves<F: Tables>(peer: &Peer) -> bool {
    F::backends().get(peer.backend).is_some_and(|backend| {
        backend.generation == peer.generation && backend.flags & Backend::<F::Addr>::SERVING != 0
    })
}
