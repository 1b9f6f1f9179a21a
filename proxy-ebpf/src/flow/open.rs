//! Opens flows: carries out what is decided about a packet that belongs to none.

use aya_log_ebpf::debug;
use proxy_common::{
    affinity::{Affinity, AffinityKey},
    explain::{Decision, Question},
    flow::{Flow, FlowKey},
    frontend::Frontend,
};

use crate::{
    clock::now,
    flow::{
        Flows,
        decide::{self, Grounds},
        place::{self, Place},
        record::{self, Record},
        share, table, uplink,
    },
    lookup::{
        affinity, client,
        frontend::{self, Destination},
        source,
    },
    maps::{
        scratch::Scratch,
        tables::{self, Tables},
    },
    packet::{barrier::opaque, headers::Headers, skb::Skb, verdict::Opened},
};

/// Ports below are for processes with privileges (`ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// The place that the packet which opens a flow comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// In by this device.
    Device,
    /// From a process of this host; it leaves by this device.
    Host,
}

/// Opens the flow of the packet in scratch memory, or moves a stale record of
/// the same client and frontend to another backend.
#[inline(always)]
pub fn open<F: Flows>(skb: &Skb, scratch: &mut Scratch<F::Addr>, origin: Origin) -> Opened {
    opaque(try_open::<F>(skb, scratch, origin))
}

#[inline(never)]
fn try_open<F: Flows>(skb: &Skb, scratch: &mut Scratch<F::Addr>, origin: Origin) -> Opened {
    let question = match origin {
        Origin::Device => Question {
            device_flags: client::device_flags(skb.ifindex()),
            flags: 0,
        },
        Origin::Host => Question {
            device_flags: 0,
            flags: Question::HOST,
        },
    };
    let mut grounds = Grounds::UNKNOWN;
    let decision = opaque(decide::decide::<F>(skb, scratch, question, &mut grounds));
    if decision != Decision::Forward {
        if grounds.place == Place::Replace {
            forget_former::<F>(&scratch.key, &scratch.headers, decision);
        }
        return decision.into();
    }
    commit::<F>(skb, scratch, origin, &grounds)
}

/// Removes the record of an earlier flow to what is refused now.
#[inline(always)]
fn forget_former<F: Flows>(key: &FlowKey<F::Addr>, headers: &Headers<F::Addr>, decision: Decision) {
    let is_over = match decision {
        Decision::Denied | Decision::NoEndpoint | Decision::NoLocalEndpoint => true,
        decision if decision.has_frontend() => false,
        _ => opaque(place::has_lost_its_frontend::<F>(key, headers)),
    };
    if is_over {
        F::remove(key);
    }
}

/// Records the scratch flow.
#[inline(always)]
fn commit<F: Flows>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    origin: Origin,
    grounds: &Grounds,
) -> Opened {
    let Scratch {
        headers,
        key,
        frontend,
        flow,
        affinity_key,
        affinity,
        ..
    } = scratch;
    let client = &headers.ip.src;
    if grounds.place == Place::Free && !opaque(share::admit::<F>(client)) {
        return Opened::OverShare;
    }
    if origin == Origin::Host {
        flow.flags |= Flow::<F::Addr>::HOST;
        flow.uplink = skb.ifindex();
        // The kernel may give one port to a connection to the frontend and to one to
        // the backend. It never chooses privileged ports by itself, and servers may
        // insist on them.
        if headers.src_port.get() >= FIRST_UNPRIVILEGED_PORT {
            flow.flags |= Flow::<F::Addr>::CHANGE_PORT;
        }
    } else {
        flow.uplink = uplink::entered_by_slowly(skb, headers.l3);
    }
    if grounds.masquerade.hides_client() {
        flow.flags |= Flow::<F::Addr>::MASQUERADE;
    } else if opaque(source::is_gateway::<F>(skb, client, &flow.backend_addr)) {
        flow.flags |= Flow::<F::Addr>::ROUTED;
    }
    let opened = opaque(place::insert::<F>(key, flow, grounds.place));
    if opened == Opened::Flow {
        *affinity_key = affinity::key(client, *frontend);
        remember_backend::<F>(affinity_key, flow, affinity);
    }
    opened
}

/// The flow that a packet follows, if it has one. Sets the key to the flow's, and may set
/// the frontend to the packet's.
#[inline(always)]
pub fn existing<F: Flows>(
    headers: &Headers<F::Addr>,
    key: &mut FlowKey<F::Addr>,
    frontend: &mut Frontend,
) -> Option<Record<F>> {
    *key = table::client_key::<F>(headers);
    let record = table::to_frontend::<F>(key, &headers.ip.dst, headers.dst_port)?;
    let flow = record.flow();
    // The filter may take the far end of what this node opens for a frontend.
    if flow.flags & Flow::<F::Addr>::OUTGOING != 0
        && F::look_up(headers, frontend) == Destination::NotOurs
    {
        return None;
    }
    let stale = opaque(record::is_stale::<F>(flow, headers));
    let due = opaque(record::is_due::<F>(flow, headers));
    (!stale && (!due || frontend::is_frontend_of::<F>(headers, frontend, flow.service)))
        .then_some(record)
}

/// Debug lines about new flows. The agent sets the level when it loads the
/// programs; below debug the verifier removes this as dead code.
#[inline(always)]
pub fn log_opened<F: Flows>(skb: Skb, headers: &Headers<F::Addr>, opened: Opened) {
    let protocol = headers.ip.protocol.0;
    let (client, port) = (headers.src_port.get(), headers.dst_port.get());
    match opened {
        Opened::Flow => debug!(
            skb,
            "new flow: protocol {} ports {} to {}", protocol, client, port
        ),
        Opened::NotOurs => {}
        refused => debug!(
            skb,
            "no flow: protocol {} ports {} to {} reason {}", protocol, client, port, refused as u8
        ),
    }
}

/// Notes that the client of this key has the flow's backend, if its Service has affinity.
#[inline(never)]
fn remember_backend<F: Tables>(
    key: &AffinityKey<F::Addr>,
    flow: &Flow<F::Addr>,
    entry: &mut Affinity,
) {
    let session_affinity = affinity::of::<F>(key.service);
    if session_affinity.seconds == 0 {
        return;
    }
    let Some(backend) = F::backends().get(flow.backend) else {
        return;
    };
    *entry = Affinity {
        backend: flow.backend,
        generation: flow.generation,
        round: session_affinity.round,
        last_used: now(),
        epoch: backend.epoch,
        zero: [0; 3],
    };
    let entry = &*entry;
    // A table without room forgets the client that came longest ago.
    let _ = F::affinities().insert(key, entry, tables::BPF_ANY);
}
