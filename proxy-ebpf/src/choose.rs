//! From what a client dialled to a backend.

use proxy_common::{
    backend::Backend,
    flow::Flow,
    frontend::{Frontend, FrontendKey},
    net::BePort,
    select,
    service::Run,
};

use crate::{
    opaque::opaque,
    open::Opened,
    parse::Headers,
    tables::{Scratch, Tables, config},
};

/// What an address and port are to us.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Dialled {
    /// Not a front end.
    NotOurs,
    /// An address of a Service, but no port of it.
    UnknownPort,
    /// A Service port, which is in the scratch memory now.
    Service,
}

/// Looks up what the packet in scratch memory is addressed to.
#[inline(always)]
pub fn frontend<F: Tables>(scratch: &mut Scratch<F::Addr>) -> Dialled {
    opaque(look_up::<F>(scratch))
}

#[inline(never)]
fn look_up<F: Tables>(scratch: &mut Scratch<F::Addr>) -> Dialled {
    let headers = &scratch.headers;
    let mut key = FrontendKey::new(headers.ip.dst, headers.dst_port, headers.ip.protocol);
    if headers.dst_port != BePort::ZERO
        && let Some(frontend) = read::<F>(&key)
    {
        scratch.frontend = frontend;
        return Dialled::Service;
    }
    key = FrontendKey::address(key.addr);
    if read::<F>(&key).is_some() {
        return Dialled::UnknownPort;
    }
    Dialled::NotOurs
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
#[inline(never)]
pub fn hash<F: Tables>(headers: &Headers<F::Addr>) -> u64 {
    let key = config().map_or([0; 2], |config| config.hash_key);
    select::flow_hash(
        key,
        (&headers.ip.src, headers.src_port),
        (&headers.ip.dst, headers.dst_port),
        headers.ip.protocol,
    )
}

/// Puts the backend that `hash` picks, `skip` slots further on, into the
/// scratch flow. [`Opened::Flow`] if there is one.
#[inline(never)]
pub fn backend<F: Tables>(scratch: &mut Scratch<F::Addr>, hash: u64, skip: u32) -> Opened {
    let Some(service) = F::services().get_ptr(scratch.frontend.service) else {
        return Opened::NoEndpoint;
    };
    // SAFETY: a row of an array lives as long as the program. A run is eight
    // aligned bytes, read in one access, so it is the old one or the new one.
    let run: Run = unsafe {
        let run = if scratch.frontend.flags & Frontend::LOCAL_SET == 0 {
            &raw const (*service).cluster
        } else {
            &raw const (*service).local
        };
        core::mem::transmute(run.cast::<u64>().read_volatile())
    };
    if run.count == 0 {
        return if run.first == Run::DROP {
            Opened::NoLocalEndpoint
        } else {
            Opened::NoEndpoint
        };
    }
    let mut offset = select::slot(hash, run.count) + skip;
    if offset >= run.count {
        offset %= run.count;
    }
    let Some(slot) = F::slots().get(run.first.wrapping_add(offset)) else {
        return Opened::NoEndpoint;
    };
    let row = slot.backend;
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

/// Whether a flow's backend still serves the Service port the flow was made
/// for (S77).
#[inline(always)]
pub fn is_serving<F: Tables>(flow: &Flow<F::Addr>) -> bool {
    F::backends().get(flow.backend).is_some_and(|backend| {
        backend.generation == flow.generation && backend.flags & Backend::<F::Addr>::SERVING != 0
    })
}
