//! Decides about a packet that belongs to no flow: who serves it, and how. Writes to no
//! table, so that `explain` asks what [`open`](super::open) does.

use proxy_common::{
    explain::{Client, Decision, Masquerade, Question},
    flow::Flow,
    frontend::Frontend,
    net::{Address as _, BePort, Protocol},
    service::SessionAffinity,
};

use crate::{
    clock::now,
    flow::{Flows, place::Place},
    lookup::{
        affinity,
        backend::{self, Choice},
        client,
        frontend::Destination,
        listener,
    },
    maps::{prefilter, scratch::Scratch},
    packet::{barrier::opaque, headers::tcp, skb::Skb},
};

/// The number of other backends that are tried when one is taken by another flow of the
/// same client port.
const MAX_SKIP: u32 = 3;

/// The reasons for a decision, and how to carry it out. What is not known before a packet
/// is refused stays as it is at first.
pub struct Grounds {
    /// The place of the flow's record.
    pub place: Place,
    pub client: Client,
    /// The traffic policy is Local, whether it binds the client or not.
    pub local_policy: bool,
    /// Session affinity remembers the backend.
    pub remembered: bool,
    pub masquerade: Masquerade,
}

impl Grounds {
    pub const UNKNOWN: Self = Self {
        place: Place::None,
        client: Client::External,
        local_policy: false,
        remembered: false,
        masquerade: Masquerade::NoDetector,
    };
}

/// Decides about the packet in scratch memory. Where it is addressed to a frontend, that
/// is there afterwards, with the set that the client gets; where it is forwarded, so is
/// the flow, with its key.
#[inline(always)]
pub fn decide<F: Flows>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    question: Question,
    grounds: &mut Grounds,
) -> Decision {
    let destination = F::look_up(&scratch.headers, &mut scratch.frontend);
    grounds.place = F::place(&scratch.headers, &mut scratch.key);
    match destination {
        Destination::NotOurs => return Decision::Pass,
        Destination::UnknownPort => return Decision::UnknownPort,
        Destination::Unallocated => return Decision::Unallocated,
        Destination::Service => {}
    }
    // What processes of the host send out is to no address of its own.
    if scratch.frontend.kind == Frontend::CLUSTER_IP
        && question.has_none(Question::HOST | Question::OFFLINE)
        && opaque(listener::takes_packet::<F>(skb, &scratch.headers))
    {
        return Decision::Listener;
    }
    if scratch.frontend.kind == Frontend::NODE_PORT
        && question.has_none(Question::CALL)
        && opaque(client::is_loopback::<F>(&scratch.headers.ip.dst))
    {
        return Decision::Loopback;
    }
    if scratch.headers.tcp_flags & tcp::RST != 0 {
        return Decision::Reset;
    }
    if !opaque(client::is_sender_admitted::<F>(
        scratch.frontend,
        &scratch.headers.ip,
    )) {
        return Decision::Denied;
    }
    if grounds.place == Place::None {
        return Decision::TooManyFrontends;
    }
    grounds.client = opaque(client::of::<F>(&scratch.headers.ip.src, question));
    grounds.local_policy = opaque(client::apply_policy(&mut scratch.frontend, grounds.client));
    match opaque(choose::<F>(scratch, grounds.place)) {
        Choice::NoEndpoint => return Decision::NoEndpoint,
        Choice::NoLocalEndpoint => return Decision::NoLocalEndpoint,
        chosen => grounds.remembered = chosen == Choice::Remembered,
    }
    grounds.masquerade = opaque(client::masquerade::<F>(
        skb,
        &scratch.headers.ip.src,
        &scratch.flow,
        scratch.frontend.kind,
        question,
        grounds.client,
        grounds.local_policy,
    ));
    Decision::Forward
}

/// Chooses a backend and fills the scratch flow.
#[inline(never)]
fn choose<F: Flows>(scratch: &mut Scratch<F::Addr>, place: Place) -> Choice {
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
    let session_affinity = affinity::of::<F>(scratch.frontend.service);
    if session_affinity.seconds != 0 {
        let chosen = opaque(with_session_affinity::<F>(scratch, hash, session_affinity));
        if !chosen.is_none() && !alone && F::is_taken(&scratch.key, &scratch.flow) {
            scratch.flow.flags = Flow::<F::Addr>::CHANGE_PORT;
        }
        return chosen;
    }
    let mut skip = 0;
    while skip <= MAX_SKIP {
        let chosen = opaque(backend::choose::<F>(
            scratch.frontend,
            &mut scratch.flow,
            hash,
            skip,
        ));
        // Two flows of one client port must not share a backend: its replies
        // would look the same.
        if chosen.is_none() || alone || !F::is_taken(&scratch.key, &scratch.flow) {
            return chosen;
        }
        skip += 1;
    }
    scratch.flow.flags = Flow::<F::Addr>::CHANGE_PORT;
    Choice::Picked
}

/// Chooses the backend that the client had before, or one to keep from now on.
#[inline(never)]
fn with_session_affinity<F: Flows>(
    scratch: &mut Scratch<F::Addr>,
    hash: u64,
    session_affinity: SessionAffinity,
) -> Choice {
    let Scratch {
        headers,
        frontend,
        flow,
        affinity_key,
        ..
    } = scratch;
    *affinity_key = affinity::key(&headers.ip.src, *frontend);
    match affinity::recall::<F>(affinity_key, session_affinity) {
        Some(row) => backend::take::<F>(flow, row, Choice::Remembered),
        None => backend::choose::<F>(*frontend, flow, hash, 0),
    }
}
