//! The frontend that a packet is addressed to.

use proxy_common::{
    family::{V4, V6},
    frontend::{Frontend, FrontendKey},
    local_addr::LocalAddr,
    net::{AddrV4, AddrV6, BePort, Protocol},
};

use crate::{
    lookup::{client, service_range},
    maps::{self, prefilter, tables::Tables},
    packet::{barrier::opaque, headers::Headers},
};

/// The meaning of an address and port to us.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Destination {
    /// Not a frontend.
    NotOurs,
    /// An address of a Service, but no port of it.
    UnknownPort,
    /// An address for cluster IPs that no Service has.
    Unallocated,
    /// A Service port.
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

/// Looks up what a packet is addressed to.
#[inline(always)]
fn look_up<F: Tables>(headers: &Headers<F::Addr>, found: &mut Frontend) -> Destination {
    let Headers { ip, dst_port, .. } = headers;
    if *dst_port != BePort::ZERO
        && let Some(frontend) = exact::<F>(&ip.dst, *dst_port, ip.protocol)
    {
        *found = frontend;
        return Destination::Service;
    }
    if let Some(frontend) = node_port::<F>(&ip.dst, *dst_port, ip.protocol) {
        *found = frontend;
        return Destination::Service;
    }
    match read::<F>(&FrontendKey::address(ip.dst)) {
        Some(address) if is_answered_for::<F>(address.kind, headers) => Destination::UnknownPort,
        None if service_range::is_entered::<F>(headers)
            && client::local_addr::<F>(&ip.dst).is_none() =>
        {
            Destination::Unallocated
        }
        _ => Destination::NotOurs,
    }
}

/// Returns whether what a packet is addressed to is a frontend of this row of
/// `SERVICES`, and for its sender.
#[inline(never)]
pub fn is_frontend_of<F: LookUp>(
    headers: &Headers<F::Addr>,
    found: &mut Frontend,
    service: u32,
) -> bool {
    F::look_up(headers, found) == Destination::Service
        && found.service == service
        && opaque(client::is_sender_admitted::<F>(*found, &headers.ip))
}

/// Returns whether a packet, whose ports may not be known, may be one to a Service.
/// Where they are not known, those to an address of this node are left to it.
#[inline(never)]
pub fn may_be_meant<F: LookUp>(headers: &Headers<F::Addr>, found: &mut Frontend) -> bool {
    if F::look_up(headers, found) != Destination::NotOurs {
        return true;
    }
    headers.dst_port == BePort::ZERO
        && read::<F>(&FrontendKey::address(headers.ip.dst)).is_some()
        && client::local_addr::<F>(&headers.ip.dst).is_none()
}

/// Returns whether we answer for an address of this kind where no Service has the port:
/// for cluster IPs (S46), and for those of load balancers, which routers may
/// send back and forth between them and this node. Where the address is this
/// node's own, its processes have the other ports, and what an external IP is
/// besides is not known (S48). Another node may have the address, and masquerade
/// to it: what a backend here answers to that is no client's packet.
#[inline(always)]
fn is_answered_for<F: Tables>(kind: u8, headers: &Headers<F::Addr>) -> bool {
    match kind {
        Frontend::CLUSTER_IP => true,
        Frontend::LOAD_BALANCER => {
            client::local_addr::<F>(&headers.ip.dst).is_none() && !may_be_reply::<F>(headers)
        }
        _ => false,
    }
}

/// Returns whether a backend may have sent this packet as a reply.
#[inline(always)]
fn may_be_reply<F: Tables>(headers: &Headers<F::Addr>) -> bool {
    !headers.opens_connection()
        && prefilter::slow::may_be_backend::<F>(
            &headers.ip.src,
            headers.src_port,
            headers.ip.protocol,
        )
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
    if !prefilter::may_be_node_port::<F>(port, protocol)
        || client::local_addr::<F>(addr)?.flags & LocalAddr::NODE_PORTS == 0
    {
        return None;
    }
    read::<F>(&FrontendKey::node_port(port, protocol))
}

#[inline(always)]
fn read<F: Tables>(key: &FrontendKey<F::Addr>) -> Option<Frontend> {
    let pointer = F::frontends().get_ptr(key)?;
    // SAFETY: a value; numbers. The tag tells whether it is still this key's.
    let frontend: Frontend = unsafe { maps::read_at_once(pointer) };
    (frontend.tag == key.tag()).then_some(frontend)
}

/// [`look_up`] as a function that the verifier looks at once.
pub trait LookUp: Tables {
    /// Looks up what a packet is addressed to; puts the Service port there if it is one.
    fn look_up(headers: &Headers<Self::Addr>, found: &mut Frontend) -> Destination;
}

macro_rules! family_look_up {
    ($family:ident, $addr:ident, $look_up:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look_up(headers: *const Headers<$addr>, found: *mut Frontend) -> u32 {
            // SAFETY: the verifier sees to it that these are null or valid, and the
            // caller has lent them.
            match unsafe { (headers.as_ref(), found.as_mut()) } {
                (Some(headers), Some(found)) => look_up::<$family>(headers, found) as u32,
                _ => 0,
            }
        }

        impl LookUp for $family {
            #[inline(always)]
            fn look_up(headers: &Headers<$addr>, found: &mut Frontend) -> Destination {
                Destination::from_number($look_up(headers, found))
            }
        }
    };
}

family_look_up!(V4, AddrV4, look_up_v4);
family_look_up!(V6, AddrV6, look_up_v6);
