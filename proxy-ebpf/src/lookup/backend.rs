//! The backend that serves a packet.

use proxy_common::{
    backend::Backend,
    family::{V4, V6},
    flow::Flow,
    frontend::Frontend,
    net::{AddrV4, AddrV6, BePort, Protocol},
    select,
    service::SlotRange,
};

use crate::{
    maps::{self, node, tables::Tables},
    packet::headers::Headers,
};

/// Hash of the packet's tuple that decides the backend.
#[inline(always)]
fn hash<F: Tables>(headers: &Headers<F::Addr>) -> u64 {
    let key = node::config().map_or([0; 2], |config| config.hash_key);
    select::flow_hash(
        key,
        (&headers.ip.src, headers.src_port),
        (&headers.ip.dst, headers.dst_port),
        headers.ip.protocol,
    )
}

/// Hash of the packet's source address alone.
#[inline(always)]
fn hash_of_client<F: Tables>(headers: &Headers<F::Addr>) -> u64 {
    let key = node::config().map_or([0; 2], |config| config.hash_key);
    let client = (&headers.ip.src, BePort::ZERO);
    select::flow_hash(key, client, client, Protocol::ANY)
}

/// The way a flow gets its backend, if it does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Choice {
    /// No backend can serve.
    NoEndpoint,
    /// No backend of this node can serve, and the policy wants one.
    NoLocalEndpoint,
    /// The hash picks it.
    Picked,
    /// Session affinity remembers it.
    Remembered,
}

impl Choice {
    /// Returns whether there is no backend.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        matches!(self, Self::NoEndpoint | Self::NoLocalEndpoint)
    }
}

/// Gives the flow the frontend's backend that `hash` picks, `skip` slots further on.
#[inline(never)]
pub fn choose<F: Tables>(
    frontend: Frontend,
    flow: &mut Flow<F::Addr>,
    hash: u64,
    skip: u32,
) -> Choice {
    let local = frontend.flags & Frontend::LOCAL_SET != 0;
    let Some(range) = slot_range::<F>(frontend.service, local) else {
        return Choice::NoEndpoint;
    };
    if range.count == 0 {
        return if range.first == SlotRange::DROP {
            Choice::NoLocalEndpoint
        } else {
            Choice::NoEndpoint
        };
    }
    let mut offset = select::slot(hash, range.count) + skip;
    if offset >= range.count {
        offset %= range.count;
    }
    let Some((row, _)) = in_slot::<F>(range.first.wrapping_add(offset)) else {
        return Choice::NoEndpoint;
    };
    take::<F>(flow, row, Choice::Picked)
}

/// Gives the flow the backend in this row, which was chosen so.
#[inline(always)]
pub fn take<F: Tables>(flow: &mut Flow<F::Addr>, row: u32, choice: Choice) -> Choice {
    let Some(backend) = F::backends().get(row) else {
        return Choice::NoEndpoint;
    };
    flow.backend_addr = backend.addr;
    flow.backend_port = backend.port;
    flow.backend = row;
    flow.generation = backend.generation;
    choice
}

/// The cluster set or the local set of a row of `SERVICES`.
#[inline(always)]
pub fn slot_range<F: Tables>(service: u32, local: bool) -> Option<SlotRange> {
    let service = F::services().get_ptr(service)?;
    // SAFETY: a field of a row; two numbers.
    Some(unsafe {
        maps::read_at_once(if local {
            &raw const (*service).local
        } else {
            &raw const (*service).cluster
        })
    })
}

/// The backend that a slot holds, with its row.
#[inline(always)]
pub fn in_slot<F: Tables>(slot: u32) -> Option<(u32, &'static Backend<F::Addr>)> {
    let row = F::slots().get(slot)?.backend;
    Some((row, F::backends().get(row)?))
}

/// Returns whether a flow's backend still serves the Service port the flow was made
/// for (S77).
#[inline(always)]
pub fn is_serving<F: Tables>(flow: &Flow<F::Addr>) -> bool {
    F::backends().get(flow.backend).is_some_and(|backend| {
        backend.generation == flow.generation && backend.flags & Backend::<F::Addr>::SERVING != 0
    })
}

/// The hashes as functions that the verifier looks at once.
pub trait Hash: Tables {
    /// Hash of the packet's tuple that decides the backend.
    fn hash(headers: &Headers<Self::Addr>) -> u64;
    /// Hash of the packet's source address alone.
    fn hash_of_client(headers: &Headers<Self::Addr>) -> u64;
}

macro_rules! family_hash {
    ($family:ident, $addr:ident, $hash:ident, $hash_of_client:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $hash(headers: *const Headers<$addr>) -> u64 {
            // SAFETY: the verifier sees to it that this is null or valid, and the
            // caller has lent it. The same below.
            unsafe { headers.as_ref() }.map_or(0, hash::<$family>)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $hash_of_client(headers: *const Headers<$addr>) -> u64 {
            // SAFETY: see above.
            unsafe { headers.as_ref() }.map_or(0, hash_of_client::<$family>)
        }

        impl Hash for $family {
            #[inline(always)]
            fn hash(headers: &Headers<$addr>) -> u64 {
                $hash(headers)
            }
            #[inline(always)]
            fn hash_of_client(headers: &Headers<$addr>) -> u64 {
                $hash_of_client(headers)
            }
        }
    };
}

family_hash!(V4, AddrV4, hash_v4, hash_of_client_v4);
family_hash!(V6, AddrV6, hash_v6, hash_of_client_v6);
