//! Opens a flow: looks up the frontend, chooses a backend, records it.

use aya_log_ebpf::debug;
use proxy_common::{
    affinity::{Affinity, AffinityKey},
    explain::{Answer, Decision, Question},
    flow::Flow,
    frontend::Frontend,
    net::{Address as _, BePort, Protocol},
    service::SessionAffinity,
};

use crate::{
    clock::now,
    flow::{
        Flows,
        place::{self, Place},
        record::{self, Record},
        share, table, uplink,
    },
    lookup::{
        affinity, backend,
        client::{self, Masquerade},
        frontend::{self, Destination},
        listener, source,
    },
    maps::{
        prefilter,
        scratch::Scratch,
        tables::{self, Tables},
    },
    packet::{
        barrier::opaque,
        headers::{Headers, tcp},
        skb::Skb,
        verdict::Opened,
    },
};

/// How many other backends are tried when one is taken by another flow of the
/// same client port.
const MAX_SKIP: u32 = 3;

/// Ports below are for processes with privileges (`ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Where the packet that opens a flow comes from.
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
    let host = origin == Origin::Host;
    let destination = F::look_up(scratch);
    let place = F::place(scratch);
    if destination != Destination::Service {
        if place == Place::Replace && opaque(place::has_lost_its_frontend::<F>(scratch)) {
            F::remove(&scratch.key);
        }
        return match destination {
            Destination::UnknownPort => Opened::UnknownPort,
            Destination::Unallocated => Opened::Unallocated,
            _ => Opened::NotOurs,
        };
    }
    if !host
        && scratch.frontend.kind == Frontend::CLUSTER_IP
        && opaque(listener::takes_packet::<F>(skb, scratch))
    {
        return Opened::NotOurs;
    }
    if scratch.frontend.kind == Frontend::NODE_PORT
        && opaque(client::is_loopback::<F>(&scratch.headers.ip.dst))
    {
        return Opened::NotOurs;
    }
    if scratch.headers.tcp_flags & tcp::RST != 0 {
        return Opened::Reset;
    }
    if !opaque(client::is_sender_admitted::<F>(scratch)) {
        if place == Place::Replace {
            F::remove(&scratch.key);
        }
        return Opened::Denied;
    }
    if place == Place::None {
        return Opened::TooManyFrontends;
    }
    let device_flags = client::device_flags(skb.ifindex());
    let client = opaque(client::of::<F>(scratch, device_flags, host));
    let local_policy = opaque(client::apply_policy(scratch, client));
    let chosen = opaque(choose::<F>(scratch, place));
    if chosen != Opened::Flow {
        if place == Place::Replace {
            F::remove(&scratch.key);
        }
        return chosen;
    }
    if place == Place::Free && !opaque(share::admit::<F>(&scratch.key.addr)) {
        return Opened::OverShare;
    }
    if host {
        scratch.flow.flags |= Flow::<F::Addr>::HOST;
        scratch.flow.uplink = skb.ifindex();
    } else {
        uplink::remember(skb, scratch);
    }
    let masquerade = opaque(client::masquerade::<F>(
        scratch,
        client,
        local_policy,
        device_flags,
    ));
    // The host's own flows always are: their replies have to be told from those
    // to its sockets (E5). So they get another port, too: the kernel may give one
    // port to a connection to the frontend and to one to the backend. It never
    // chooses privileged ports by itself, and servers may insist on them.
    if host && scratch.headers.src_port.get() >= FIRST_UNPRIVILEGED_PORT {
        scratch.flow.flags |= Flow::<F::Addr>::CHANGE_PORT;
    }
    if host
        || masquerade == Masquerade::Yes
        || masquerade == Masquerade::UnlessRepliesPass
            && !opaque(client::replies_pass::<F>(skb, scratch))
    {
        scratch.flow.flags |= Flow::<F::Addr>::MASQUERADE;
    } else if opaque(source::is_gateway::<F>(skb, scratch)) {
        scratch.flow.flags |= Flow::<F::Addr>::ROUTED;
    }
    let opened = opaque(place::insert::<F>(scratch, place));
    if opened == Opened::Flow {
        remember_backend::<F>(scratch);
    }
    opened
}

/// Decides about the packet in scratch memory as [`open`] does, and does
/// nothing.
#[inline(never)]
pub fn explain<F: Flows>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    question: Question,
    answer: &mut Answer,
) -> Decision {
    match F::look_up(scratch) {
        Destination::NotOurs => return Decision::Pass,
        Destination::UnknownPort => return Decision::UnknownPort,
        Destination::Unallocated => return Decision::Unallocated,
        Destination::Service => {}
    }
    answer.frontend = scratch.frontend;
    let client = opaque(client::of::<F>(
        scratch,
        question.device_flags,
        question.flags & Question::HOST != 0,
    ));
    answer.client = client as u8;
    if !opaque(client::is_sender_admitted::<F>(scratch)) {
        return Decision::Denied;
    }
    let local_policy = opaque(client::apply_policy(scratch, client));
    answer.frontend = scratch.frontend;
    let local = scratch.frontend.flags & Frontend::LOCAL_SET != 0;
    if let Some(range) = backend::slot_range::<F>(scratch.frontend.service, local) {
        answer.range = range;
    }
    let session_affinity = affinity::of::<F>(scratch.frontend.service);
    answer.remembered = u8::from(
        session_affinity.seconds != 0
            && affinity::recall::<F>(scratch, session_affinity, local).is_some(),
    );
    scratch.key = table::client_key::<F>(&scratch.headers);
    match opaque(choose::<F>(scratch, Place::Free)) {
        Opened::Flow => {}
        Opened::NoLocalEndpoint => return Decision::NoLocalEndpoint,
        _ => return Decision::NoEndpoint,
    }
    answer.backend = scratch.flow.backend;
    let masquerade = opaque(client::masquerade::<F>(
        scratch,
        client,
        local_policy,
        question.device_flags,
    ));
    let hidden = match masquerade {
        Masquerade::No => false,
        Masquerade::Yes => true,
        Masquerade::UnlessRepliesPass if question.flags & Question::OFFLINE != 0 => {
            !client::is_here::<F>(scratch)
        }
        Masquerade::UnlessRepliesPass => !client::replies_pass::<F>(skb, scratch),
    };
    answer.masquerade = u8::from(hidden);
    Decision::Forward
}

/// Chooses a backend and fills the scratch flow. [`Opened::Flow`] if there is one.
#[inline(never)]
fn choose<F: Flows>(scratch: &mut Scratch<F::Addr>, place: Place) -> Opened {
    let hash = F::hash(&scratch.headers);
    let headers = &scratch.headers;
    let alone = place == Place::Free
        && scratch.key.index == 0
        && !(headers.ip.protocol == Protocol::UDP
            && prefilter::slow::may_be_backend::<F>(
                &headers.ip.src,
                headers.src_port,
                Protocol::UDP,
            ));
    let flow = &mut scratch.flow;
    flow.frontend_addr = scratch.headers.ip.dst;
    flow.frontend_port = scratch.headers.dst_port;
    flow.masquerade_addr = F::Addr::ZERO;
    flow.masquerade_port = BePort::ZERO;
    flow.client_state = 0;
    flow.backend_state = 0;
    flow.service = scratch.frontend.service;
    flow.last_seen = now();
    flow.flags = 0;
    flow.highest = 0;
    flow.changed_port = BePort::ZERO;
    let local = scratch.frontend.flags & Frontend::LOCAL_SET != 0;
    let session_affinity = affinity::of::<F>(scratch.frontend.service);
    if session_affinity.seconds != 0 {
        let chosen = opaque(with_session_affinity::<F>(
            scratch,
            hash,
            session_affinity,
            local,
        ));
        if chosen == Opened::Flow && !alone && F::is_taken(scratch) {
            scratch.flow.flags = Flow::<F::Addr>::CHANGE_PORT;
        }
        return chosen;
    }
    let mut skip = 0;
    while skip <= MAX_SKIP {
        let chosen = opaque(backend::choose::<F>(scratch, hash, skip));
        if chosen != Opened::Flow {
            return chosen;
        }
        // Two flows of one client port must not share a backend: its replies
        // would look the same.
        if alone || !F::is_taken(scratch) {
            return Opened::Flow;
        }
        skip += 1;
    }
    scratch.flow.flags = Flow::<F::Addr>::CHANGE_PORT;
    Opened::Flow
}

/// Chooses the backend that the client had before, or one to keep from now on.
#[inline(never)]
fn with_session_affinity<F: Flows>(
    scratch: &mut Scratch<F::Addr>,
    hash: u64,
    session_affinity: SessionAffinity,
    local: bool,
) -> Opened {
    match affinity::recall::<F>(scratch, session_affinity, local) {
        Some(row) => backend::take::<F>(scratch, row),
        None => backend::choose::<F>(scratch, hash, 0),
    }
}

/// The flow that the packet in scratch memory follows, if it has one.
#[inline(always)]
pub fn existing<F: Flows>(scratch: &mut Scratch<F::Addr>) -> Option<Record<F>> {
    let headers = &scratch.headers;
    scratch.key = table::client_key::<F>(headers);
    let record = table::to_frontend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port)?;
    let flow = record.flow();
    // The filter may take the far end of what this node opens for a frontend.
    if flow.flags & Flow::<F::Addr>::OUTGOING != 0 && F::look_up(scratch) == Destination::NotOurs {
        return None;
    }
    let headers = &scratch.headers;
    let stale = opaque(record::is_stale::<F>(flow, headers));
    let due = opaque(record::is_due::<F>(flow, headers));
    (!stale && (!due || frontend::is_frontend_of::<F>(scratch, flow.service))).then_some(record)
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

/// Notes that the client in scratch memory has the scratch flow's backend, if
/// its Service has affinity.
#[inline(never)]
pub fn remember_backend<F: Tables>(scratch: &mut Scratch<F::Addr>) {
    let session_affinity = affinity::of::<F>(scratch.frontend.service);
    if session_affinity.seconds == 0 {
        return;
    }
    let Some(backend) = F::backends().get(scratch.flow.backend) else {
        return;
    };
    scratch.affinity_key = AffinityKey {
        client: scratch.headers.ip.src,
        service: scratch.frontend.service,
        set: u32::from(scratch.frontend.flags & Frontend::LOCAL_SET != 0),
    };
    scratch.affinity = Affinity {
        backend: scratch.flow.backend,
        generation: scratch.flow.generation,
        round: session_affinity.round,
        last_used: now(),
        epoch: backend.epoch,
        zero: [0; 3],
    };
    let (key, affinity) = (&scratch.affinity_key, &scratch.affinity);
    // A table without room forgets the client that came longest ago.
    let _ = F::affinities().insert(key, affinity, tables::BPF_ANY);
}
