//! Opens a flow: looks up the frontend, chooses a backend, records it.

use proxy_common::{
    counter::Counter,
    explain::{Answer, Decision, Question},
    flow::{Flow, FlowKey},
    frontend::Frontend,
    net::{Address as _, BePort, Protocol},
    service::SessionAffinity,
};

use crate::{
    flow::{peer, record, share, uplink},
    lookup::{
        affinity,
        choose::{self, Destination},
        client::{self, Masquerade},
        listener,
    },
    maps::tables::{self, Scratch, Tables, count},
    packet::{
        barrier::opaque,
        parse::{IpHeader, tcp},
        skb::Skb,
    },
    route::{self, Route},
};

/// `EEXIST`, as helpers return it.
const EEXIST: i32 = -17;

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

/// What became of the attempt to open a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opened {
    /// The record is in the table.
    Flow,
    /// The packet is not addressed to a frontend.
    NotOurs,
    NoEndpoint,
    NoLocalEndpoint,
    UnknownPort,
    TooManyFrontends,
    FlowTableFull,
    /// Its packets towards the backend need a port, and none is free.
    PortsExhausted,
    /// The frontend is not for this client.
    Denied,
    /// A reset of a connection that is long gone.
    Reset,
    /// No Service has the address, which is one for cluster IPs.
    Unallocated,
    /// The table is nearly full, and the client has its share of it.
    OverShare,
}

impl Opened {
    /// The reason to count, where no flow was opened.
    #[inline(always)]
    pub fn reason(self) -> Option<Counter> {
        match self {
            Self::Flow | Self::NotOurs | Self::Reset => None,
            Self::NoEndpoint => Some(Counter::NoEndpoint),
            Self::NoLocalEndpoint => Some(Counter::NoLocalEndpoint),
            Self::UnknownPort => Some(Counter::UnknownPort),
            Self::TooManyFrontends => Some(Counter::TooManyFrontends),
            Self::FlowTableFull => Some(Counter::FlowTableFull),
            Self::OverShare => Some(Counter::ClientOverShare),
            Self::PortsExhausted => Some(Counter::MasqueradePortsExhausted),
            Self::Denied => Some(Counter::SourceRangeDenied),
            Self::Unallocated => Some(Counter::Unallocated),
        }
    }
}

/// Opens the flow of the packet in scratch memory, or moves a stale record of
/// the same client and frontend to another backend.
#[inline(always)]
pub fn open<F: IpHeader + Route>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    origin: Origin,
) -> Opened {
    opaque(try_open::<F>(skb, scratch, origin))
}

#[inline(never)]
fn try_open<F: IpHeader + Route>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    origin: Origin,
) -> Opened {
    let host = origin == Origin::Host;
    let destination = choose::frontend::<F>(scratch);
    let place = F::place(scratch);
    if destination != Destination::Service {
        if place == Place::Replace && opaque(has_lost_its_frontend::<F>(scratch)) {
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
    } else if opaque(route::is_gateway::<F>(skb, scratch)) {
        scratch.flow.flags |= Flow::<F::Addr>::ROUTED;
    }
    let opened = opaque(insert::<F>(scratch, place));
    if opened == Opened::Flow {
        affinity::remember::<F>(scratch);
    }
    opened
}

/// Decides about the packet in scratch memory as [`open`] does, and does
/// nothing.
#[inline(never)]
pub fn explain<F: IpHeader + Route>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    question: Question,
    answer: &mut Answer,
) -> Decision {
    match choose::frontend::<F>(scratch) {
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
    if let Some(range) = choose::slot_range::<F>(scratch.frontend.service, local) {
        answer.range = range;
    }
    let session_affinity = affinity::of::<F>(scratch.frontend.service);
    answer.remembered = u8::from(
        session_affinity.seconds != 0
            && affinity::recall::<F>(scratch, session_affinity, local).is_some(),
    );
    scratch.key = record::client_key::<F>(&scratch.headers);
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

/// Where a client's new record goes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// All records of the client port are in use.
    None,
    Free,
    /// The client's record for the same frontend, or one that is closing.
    Replace,
}

impl Place {
    /// The place with this number.
    #[inline(always)]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Free,
            2 => Self::Replace,
            _ => Self::None,
        }
    }
}

/// Finds a place and sets the scratch key to it.
#[inline(always)]
pub fn place<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> Place {
    let mut key = record::client_key::<F>(&scratch.headers);
    scratch.key = key;
    let Some(first) = record::get::<F>(&key) else {
        return Place::Free;
    };
    let (mut place, mut chosen) = (Place::None, 0_u8);
    let mut index = 0_u32;
    while index <= record::LAST_INDEX && index <= record::highest::<F>(first) + 1 {
        key.index = index as u8;
        let mut same = false;
        let found = match record::get::<F>(&key) {
            None => Place::Free,
            Some(record) => {
                // SAFETY: see `Record`.
                let flow = unsafe { record.as_ref() };
                same = flow.frontend_port == scratch.headers.dst_port
                    && flow.frontend_addr == scratch.headers.ip.dst;
                let over = record::is_vacant(flow)
                    || scratch.headers.ip.protocol.has_connections() && record::is_closing(flow);
                if same || over {
                    Place::Replace
                } else {
                    Place::None
                }
            }
        };
        if same || place == Place::None && found != Place::None {
            place = opaque(found);
            chosen = opaque(index as u8);
        }
        if same {
            break;
        }
        index += 1;
    }
    scratch.key.index = chosen;
    place
}

/// Whether the record with the key in scratch memory is of a flow to what the
/// packet is addressed to, which is no frontend any more. What this node opens
/// from a NodePort has none.
#[inline(never)]
fn has_lost_its_frontend<F: IpHeader>(scratch: &Scratch<F::Addr>) -> bool {
    let headers = &scratch.headers;
    record::get::<F>(&scratch.key).is_some_and(|record| {
        // SAFETY: see `Record`.
        let flow = unsafe { record.as_ref() };
        flow.flags & Flow::<F::Addr>::OUTGOING == 0
            && flow.frontend_port == headers.dst_port
            && flow.frontend_addr == headers.ip.dst
    })
}

/// Chooses a backend and fills the scratch flow. [`Opened::Flow`] if there is one.
#[inline(never)]
fn choose<F: IpHeader>(scratch: &mut Scratch<F::Addr>, place: Place) -> Opened {
    let hash = F::hash(&scratch.headers);
    let headers = &scratch.headers;
    let alone = place == Place::Free
        && scratch.key.index == 0
        && !(headers.ip.protocol == Protocol::UDP
            && tables::slow::may_be_backend::<F>(&headers.ip.src, headers.src_port, Protocol::UDP));
    let flow = &mut scratch.flow;
    flow.frontend_addr = scratch.headers.ip.dst;
    flow.frontend_port = scratch.headers.dst_port;
    flow.masquerade_addr = F::Addr::ZERO;
    flow.masquerade_port = BePort::ZERO;
    flow.client_state = 0;
    flow.backend_state = 0;
    flow.service = scratch.frontend.service;
    flow.last_seen = record::now();
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
        let chosen = opaque(choose::backend::<F>(scratch, hash, skip));
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
fn with_session_affinity<F: IpHeader>(
    scratch: &mut Scratch<F::Addr>,
    hash: u64,
    session_affinity: SessionAffinity,
    local: bool,
) -> Opened {
    match affinity::recall::<F>(scratch, session_affinity, local) {
        Some(row) => choose::take::<F>(scratch, row),
        None => choose::backend::<F>(scratch, hash, 0),
    }
}

/// Whether another flow of the client port leads to the scratch flow's backend, or
/// one of the backend's to the client port.
#[inline(always)]
pub fn is_taken<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    let mut key = scratch.key;
    let own = key.index;
    let mut taken = opaque(peer::would_answer::<F>(scratch));
    let mut index = 0_u32;
    while !taken && index <= record::LAST_INDEX {
        key.index = index as u8;
        if let Some(record) = record::get::<F>(&key) {
            // SAFETY: see `Record`.
            let flow = unsafe { record.as_ref() };
            taken = opaque(
                key.index != own
                    && flow.backend_port == scratch.flow.backend_port
                    && flow.backend_addr == scratch.flow.backend_addr,
            );
        }
        index += 1;
    }
    taken
}

/// Enters the scratch flow under the scratch key.
#[inline(never)]
pub fn insert<F: Tables>(scratch: &mut Scratch<F::Addr>, place: Place) -> Opened {
    let replace = place == Place::Replace;
    if replace {
        if let Some(old) = record::get::<F>(&scratch.key) {
            scratch.flow.highest = record::highest::<F>(old) as u8;
            // SAFETY: see `Record`.
            record::forget_replies::<F>(&scratch.key, unsafe { old.as_ref() });
        }
        count(Counter::FlowReselected);
    } else if scratch.key.index > 0 {
        // Raised before the record exists, so that nobody overlooks it.
        raise_highest::<F>(&scratch.key);
    }
    let mode = if replace {
        tables::BPF_ANY
    } else {
        tables::BPF_NOEXIST
    };
    let (key, flow) = (&scratch.key, &scratch.flow);
    match F::flows().insert(key, flow, mode) {
        Ok(()) => {
            if !replace {
                count(Counter::FlowCreated);
            }
            Opened::Flow
        }
        // Another CPU opened the flow with a packet of its own.
        Err(EEXIST) => Opened::Flow,
        Err(_) => Opened::FlowTableFull,
    }
}

#[inline(always)]
fn raise_highest<F: Tables>(key: &FlowKey<F::Addr>) {
    if let Some(first) = record::get::<F>(&key.with_index(0)) {
        // SAFETY: see `Record`; a one-byte store.
        unsafe {
            let highest = &raw mut (*first.as_ptr()).highest;
            if *highest < key.index {
                *highest = key.index;
            }
        }
    }
}
