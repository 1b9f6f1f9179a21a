//! From a packet's destination to a backend.

use proxy_common::{
    backend::Backend,
    flow::Flow,
    frontend::{Frontend, FrontendKey},
    local_addr::LocalAddr,
    net::{BePort, Protocol},
    select,
    service::SlotRange,
};

use crate::{
    flow::open::Opened,
    lookup::{client, service_range},
    maps::tables::{self, Scratch, Tables, config},
    packet::{
        barrier::opaque,
        parse::{Headers, IpHeader},
    },
};

/// What an address and port are to us.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Destination {
    /// Not a frontend.
    NotOurs,
    /// An address of a Service, but no port of it.
    UnknownPort,
    /// An address for cluster IPs that no Service has.
    Unallocated,
    /// A Service port, which is in the scratch memory now.
    Service,
}

impl Destination {
    #[inline(always)]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::UnknownPort,
            2 => Self::Unallocated,
            3 => Self::Service,
            _ => Self::NotOurs,
        }
    }
}

/// Looks up what the packet in scratch memory is addressed to.
#[inline(always)]
pub fn frontend<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> Destination {
    F::look_up(scratch)
}

#[inline(always)]
pub fn look_up<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> Destination {
    let Headers {
        ip, ref dst_port, ..
    } = scratch.headers;
    if *dst_port != BePort::ZERO
        && let Some(frontend) = exact::<F>(&ip.dst, *dst_port, ip.protocol)
    {
        scratch.frontend = frontend;
        return Destination::Service;
    }
    if let Some(frontend) = node_port::<F>(&ip.dst, *dst_port, ip.protocol) {
        scratch.frontend = frontend;
        return Destination::Service;
    }
    match read::<F>(&FrontendKey::address(ip.dst)) {
        Some(address) if is_answered_for::<F>(address.kind, &scratch.headers) => {
            Destination::UnknownPort
        }
        None if service_range::is_entered::<F>(&scratch.headers)
            && client::local_addr::<F>(&ip.dst).is_none() =>
        {
            Destination::Unallocated
        }
        _ => Destination::NotOurs,
    }
}

/// Whether what the packet in scratch memory is addressed to is a frontend of
/// this row of `SERVICES`, and for its sender.
#[inline(never)]
pub fn is_frontend_of<F: IpHeader>(scratch: &mut Scratch<F::Addr>, service: u32) -> bool {
    frontend::<F>(scratch) == Destination::Service
        && scratch.frontend.service == service
        && opaque(client::is_sender_admitted::<F>(scratch))
}

/// Whether the packet in scratch memory, whose ports may not be known, may be
/// one to a Service. Where they are not known, those to an address of this node
/// are left to it.
#[inline(never)]
pub fn may_be_meant<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> bool {
    if frontend::<F>(scratch) != Destination::NotOurs {
        return true;
    }
    let headers = &scratch.headers;
    headers.dst_port == BePort::ZERO
        && read::<F>(&FrontendKey::address(headers.ip.dst)).is_some()
        && client::local_addr::<F>(&headers.ip.dst).is_none()
}

/// Whether we answer for an address of this kind where no Service has the port:
/// for cluster IPs (S46), and for those of load balancers, which routers may
/// send back and forth between them and this node. Where the address is this
/// node's own, its processes have the other ports, and what an external IP is
/// besides is not known (S48). Another node may have the address, and masquerade
/// to it: what a backend here answers to that is no client's packet.
#[inline(always)]
fn is_answered_for<F: IpHeader>(kind: u8, headers: &Headers<F::Addr>) -> bool {
    match kind {
        Frontend::CLUSTER_IP => true,
        Frontend::LOAD_BALANCER => {
            client::local_addr::<F>(&headers.ip.dst).is_none() && !may_be_reply::<F>(headers)
        }
        _ => false,
    }
}

/// Whether a backend may have sent this packet as a reply.
#[inline(always)]
fn may_be_reply<F: IpHeader>(headers: &Headers<F::Addr>) -> bool {
    !headers.opens_connection()
        && tables::slow::may_be_backend::<F>(&headers.ip.src, headers.src_port, headers.ip.protocol)
}

/// The frontend with this very address and port.
#[inline(always)]
pub fn exact<F: Tables>(addr: &F::Addr, port: BePort, protocol: Protocol) -> Option<Frontend> {
    read::<F>(&FrontendKey::new(*addr, port, protocol))
}

/// The NodePort that this address and port are: those of this node that accept
/// NodePorts, after everything that has the address itself (S51, S52).
#[inline(always)]
pub fn node_port<F: Tables>(addr: &F::Addr, port: BePort, protocol: Protocol) -> Option<Frontend> {
    if !tables::may_be_node_port::<F>(port, protocol)
        || client::local_addr::<F>(addr)?.flags & LocalAddr::NODE_PORTS == 0
    {
        return None;
    }
    read::<F>(&FrontendKey::node_port(port, protocol))
}

#[inline(always)]
fn read<F: Tables>(key: &FrontendKey<F::Addr>) -> Option<Frontend> {
    let pointer = F::frontends().get_ptr(key)?;
    // SAFETY: eight aligned bytes, read in one access; every bit pattern is a
    // valid value, and the tag tells whether it is still this key's.
    let frontend: Frontend = unsafe { core::mem::transmute(pointer.cast::<u64>().read_volatile()) };
    (frontend.tag == key.tag()).then_some(frontend)
}

/// Hash of the packet's tuple that decides the backend.
#[inline(always)]
pub fn hash<F: Tables>(headers: &Headers<F::Addr>) -> u64 {
    let key = config().map_or([0; 2], |config| config.hash_key);
    select::flow_hash(
        key,
        (&headers.ip.src, headers.src_port),
        (&headers.ip.dst, headers.dst_port),
        headers.ip.protocol,
    )
}

/// Hash of the packet's source address alone.
#[inline(always)]
pub fn hash_of_client<F: Tables>(headers: &Headers<F::Addr>) -> u64 {
    let key = config().map_or([0; 2], |config| config.hash_key);
    let client = (&headers.ip.src, BePort::ZERO);
    select::flow_hash(key, client, client, Protocol::ANY)
}

/// Puts the backend that `hash` picks, `skip` slots further on, into the
/// scratch flow. [`Opened::Flow`] if there is one.
#[inline(never)]
pub fn backend<F: Tables>(scratch: &mut Scratch<F::Addr>, hash: u64, skip: u32) -> Opened {
    let local = scratch.frontend.flags & Frontend::LOCAL_SET != 0;
    let Some(range) = slot_range::<F>(scratch.frontend.service, local) else {
        return Opened::NoEndpoint;
    };
    if range.count == 0 {
        return if range.first == SlotRange::DROP {
            Opened::NoLocalEndpoint
        } else {
            Opened::NoEndpoint
        };
    }
    let mut offset = select::slot(hash, range.count) + skip;
    if offset >= range.count {
        offset %= range.count;
    }
    let Some((row, _)) = in_slot::<F>(range.first.wrapping_add(offset)) else {
        return Opened::NoEndpoint;
    };
    take::<F>(scratch, row)
}

/// Puts the backend in this row into the scratch flow.
#[inline(always)]
pub fn take<F: Tables>(scratch: &mut Scratch<F::Addr>, row: u32) -> Opened {
    let Some(backend) = F::backends().get(row) else {
        return Opened::NoEndpoint;
    };
    let flow = &mut scratch.flow;
    flow.backend_addr = backend.addr;
    flow.backend_port = backend.port;
    flow.backend = row;
    flow.generation = backend.generation;
    Opened::Flow
}

/// The cluster set or the local set of a row of `SERVICES`.
#[inline(always)]
pub fn slot_range<F: Tables>(service: u32, local: bool) -> Option<SlotRange> {
    let service = F::services().get_ptr(service)?;
    // SAFETY: a row of an array lives as long as the program. A range is eight
    // aligned bytes, read in one access, so it is the old one or the new one.
    let range = unsafe {
        let range = if local {
            &raw const (*service).local
        } else {
            &raw const (*service).cluster
        };
        core::mem::transmute::<u64, SlotRange>(range.cast::<u64>().read_volatile())
    };
    Some(range)
}

/// The backend that a slot holds, with its row.
#[inline(always)]
pub fn in_slot<F: Tables>(slot: u32) -> Option<(u32, &'static Backend<F::Addr>)> {
    let row = F::slots().get(slot)?.backend;
    Some((row, F::backends().get(row)?))
}

/// Whether a flow's backend still serves the Service port the flow was made
/// for (S77).
#[inline(always)]
pub fn is_serving<F: Tables>(flow: &Flow<F::Addr>) -> bool {
    F::backends().get(flow.backend).is_some_and(|backend| {
        backend.generation == flow.generation && backend.flags & Backend::<F::Addr>::SERVING != 0
    })
}
