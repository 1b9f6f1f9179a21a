//! Packets that come in by a device.

use aya_ebpf::{bindings::bpf_fib_lookup, helpers::generated::bpf_fib_lookup as fib_lookup};
use aya_log_ebpf::debug;
use proxy_common::{
    config::Config,
    counter::Counter,
    family::{V4, V6},
    flow::Flow,
    net::Protocol,
};

use crate::{
    flow::{
        fragment::{self, Hook},
        masquerade::{self, Sockets},
        open::{self, Opened, Origin},
        outgoing,
        record::{self, Direction, Record},
        uplink,
    },
    hooks::fast,
    lookup::{
        choose::{self, Destination},
        client, service_range,
    },
    maps::tables::{self, Scratch},
    packet::{
        barrier::opaque,
        hint::{self, Hint},
        parse::{self, Headers, IpHeader, Part},
        rewrite::{self, Side},
        skb::{Addressee, Link, Skb, same_mac},
        verdict::{Fault, Outcome},
    },
    reply::{
        echo, icmp,
        refuse::{self, To},
    },
    route::Route,
};

/// Runs the ingress hook.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    // A packet may pass several devices on its way in (a VLAN above a network
    // card). Once translated it is done (E22).
    if matches!(hint::get(skb), Hint::Done | Hint::Opened | Hint::Masquerade) {
        return Outcome::NEXT.action();
    }
    let Some(network) = parse::network(skb) else {
        return Outcome::NEXT.action();
    };
    if network.ethertype == V4::ETHERTYPE {
        fast_or_slow::<V4>(skb, network.tagged)
    } else if network.ethertype == V6::ETHERTYPE {
        fast_or_slow::<V6>(skb, network.tagged)
    } else {
        Outcome::NEXT.action()
    }
}

#[inline(always)]
fn fast_or_slow<F: IpHeader + Route>(skb: Skb, tagged: bool) -> i32 {
    if !tagged && let Some(outcome) = fast::ingress::<F>(skb) {
        return outcome.action();
    }
    hint::keep(skb, Hint::None);
    tables::go_slow(skb, F::SLOW.ingress);
    Outcome::drop(Counter::RewriteFailed).action()
}

/// The slow path: decides about every packet.
#[inline(always)]
pub fn slow<F: IpHeader + Route>(skb: Skb) -> i32 {
    let (_, link) = hint::resume(skb);
    let skb = skb.on(link);
    let outcome = handle::<F>(skb);
    if outcome == Outcome::AGAIN {
        hint::keep(skb, Hint::None);
        tables::go_slow(skb, F::SLOW.ingress);
        return Outcome::drop(Counter::RewriteFailed).action();
    }
    outcome.action()
}

#[inline(always)]
fn handle<F: IpHeader + Route>(skb: Skb) -> Outcome {
    let Some(scratch) = parse::to_scratch::<F>(skb) else {
        return Outcome::NEXT;
    };
    let headers = &mut scratch.headers;
    // What the host will throw away opens, ends and asks nothing.
    if !opaque(parse::is_intact::<F>(&skb, headers)) {
        return Outcome::NEXT;
    }
    if headers.ip.unreadable {
        return unreadable::<F>(&skb, scratch);
    }
    if headers.ip.protocol == F::ICMP {
        if icmp::is_error::<F>(skb, headers) {
            return icmp::ingress::<F>(&skb, scratch);
        }
        if icmp::is_of_link::<F>(skb, headers) {
            hint::set(skb, Hint::Entered);
            return Outcome::NEXT;
        }
    }
    if headers.ip.part == Part::Later && !fragment::complete::<F>(headers, Hook::Ingress) {
        return unknown_fragment::<F>(&skb, scratch);
    }
    // Replies first: the filter may take this node's address for a frontend's.
    if tables::slow::may_be_masquerade::<F>(&headers.ip.dst)
        && Arrival::of(skb) != Arrival::Foreign
        && let Some(outcome) = masquerade::reply::<F>(&skb, scratch)
    {
        return outcome;
    }
    if opaque(may_be_for_frontend::<F>(&scratch.headers)) {
        let arrival = Arrival::of(skb);
        if arrival == Arrival::Foreign {
            hint::set(skb, Hint::Foreign);
            return Outcome::NEXT;
        }
        return to_frontend::<F>(&skb, scratch, opaque(arrival));
    }
    enter::<F>(&skb, scratch);
    Outcome::NEXT
}

/// A packet that is not addressed to a frontend.
#[inline(never)]
fn enter<F: IpHeader + Sockets>(skb: &Skb, scratch: &mut Scratch<F::Addr>) {
    let headers = &scratch.headers;
    let is_pretended = opaque(outgoing::is_pretended_slowly::<F>(headers));
    let mut hint = outgoing::entered(is_pretended);
    if (headers.opens_connection() || headers.ip.protocol == Protocol::UDP)
        && opaque(direct::<F>(skb, scratch))
        && !is_pretended
    {
        hint = Hint::Direct;
    }
    hint::set(*skb, hint);
}

/// Whether the packet may be addressed to a frontend, or to what would be one.
#[inline(never)]
fn may_be_for_frontend<F: IpHeader>(headers: &Headers<F::Addr>) -> bool {
    tables::may_be_frontend::<F>(&headers.ip.dst)
        || choose::node_port::<F>(&headers.ip.dst, headers.dst_port, headers.ip.protocol).is_some()
        || service_range::is_entered::<F>(headers)
}

/// How a frame got here.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Arrival {
    /// Addressed to the device itself; also to the bridge that it is a port of,
    /// if that has its MAC address.
    Device,
    /// Addressed to the bridge that the device is a port of.
    Bridge,
    /// Addressed to somebody else: bridged through, or overheard (E12).
    Foreign,
}

impl Arrival {
    #[inline(always)]
    pub fn of(skb: Skb) -> Self {
        match skb.addressee() {
            Addressee::ThisDevice => Self::Device,
            Addressee::Many => Self::Foreign,
            Addressee::OtherMac => match tables::device(skb.ifindex()) {
                Some(device)
                    if device.bridge != 0
                        && skb.link == Link::Ethernet
                        && skb
                            .read::<[u8; 6]>(0)
                            .is_some_and(|mac| same_mac(mac, device.bridge_mac)) =>
                {
                    Self::Bridge
                }
                _ => Self::Foreign,
            },
        }
    }
}

/// Client to frontend: dst := backend.
#[inline(never)]
fn to_frontend<F: IpHeader + Route>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    arrival: Arrival,
) -> Outcome {
    if scratch.headers.ip.protocol == F::ICMP
        && let Some(outcome) = echo::answer::<F>(skb, scratch, To::Sender)
    {
        return outcome;
    }
    let record = match existing::<F>(scratch) {
        Some(record) => record,
        None if scratch.headers.ip.part == Part::Later => {
            return Outcome::drop(Counter::FragmentUnknown);
        }
        None => {
            let opened = open::open::<F>(skb, scratch, Origin::Device);
            log_opened::<F>(*skb, &scratch.headers, opened);
            match opened {
                Opened::Flow => {}
                Opened::NotOurs => {
                    enter::<F>(skb, scratch);
                    return Outcome::NEXT;
                }
                refused => {
                    return refuse::answer::<F>(skb, scratch, refused, To::Sender);
                }
            }
            let ip = &scratch.headers.ip;
            match record::opened::<F>(&scratch.key, &ip.dst, scratch.headers.dst_port) {
                Some(record) => record,
                None => return Outcome::AGAIN,
            }
        }
    };
    fragment::remember::<F>(&scratch.headers, Hook::Ingress);
    if let Err(outcome) = masquerade::change_port::<F>(skb, scratch, record, To::Sender) {
        return outcome;
    }
    forward_slowly::<F>(skb, scratch, record, arrival)
}

/// The flow that the packet in scratch memory follows, if it has one.
#[inline(always)]
pub fn existing<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> Option<Record<F>> {
    let headers = &scratch.headers;
    scratch.key = record::client_key::<F>(headers);
    let record = record::to_frontend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port)?;
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    // The filter may take the far end of what this node opens for a frontend.
    if flow.flags & Flow::<F::Addr>::OUTGOING != 0
        && choose::frontend::<F>(scratch) == Destination::NotOurs
    {
        return None;
    }
    let headers = &scratch.headers;
    let stale = opaque(record::is_stale::<F>(flow, headers));
    let due = opaque(record::is_due::<F>(flow, headers));
    (!stale && (!due || choose::is_frontend_of::<F>(scratch, flow.service))).then_some(record)
}

/// Debug lines about new flows. The agent sets the level when it loads the
/// programs; below debug the verifier removes this as dead code.
#[inline(always)]
pub fn log_opened<F: IpHeader>(skb: Skb, headers: &Headers<F::Addr>, opened: Opened) {
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

#[inline(never)]
fn forward_slowly<F: IpHeader + Route>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
    arrival: Arrival,
) -> Outcome {
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    let (port, flags) = (flow.backend_port, flow.flags);
    scratch.reply.backend_addr = flow.backend_addr;
    let (headers, addr) = (&mut scratch.headers, &scratch.reply.backend_addr);
    record::touch_by_client::<F>(record, headers);
    uplink::follow_slowly::<F>(skb, record, headers.l3);
    if may_be_bridged::<F>(arrival, flags)
        && stay_on_bridge_slowly::<F>(skb, headers, addr).is_err()
        || F::rewrite(*skb, headers, Side::Destination, addr, port).is_err()
    {
        return Fault.into();
    }
    if flags & Flow::<F::Addr>::MASQUERADE != 0 {
        // Where it leaves, a later fragment may come first.
        fragment::remember::<F>(headers, Hook::Egress);
    }
    hint::set(*skb, hint_after::<F>(flags, Hint::Opened));
    Outcome::NEXT
}

#[inline(never)]
fn stay_on_bridge_slowly<F: IpHeader + Route>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    backend: &F::Addr,
) -> Result<(), Fault> {
    stay_on_bridge::<F>(*skb, headers, backend)
}

/// What is left to do for a packet that was sent on by a flow with these flags;
/// `done` if it keeps its source.
#[inline(always)]
fn hint_after<F: IpHeader>(flags: u8, done: Hint) -> Hint {
    if flags & Flow::<F::Addr>::MASQUERADE != 0 {
        Hint::Masquerade
    } else {
        done
    }
}

/// Sends a packet on to its flow's backend, on the fast path.
#[inline(always)]
pub fn forward<F: IpHeader + Route>(
    skb: Skb,
    headers: &mut Headers<F::Addr>,
    record: Record<F>,
    arrival: Arrival,
) -> Outcome {
    match try_forward::<F>(skb, headers, record, arrival) {
        Ok(()) => Outcome::NEXT,
        Err(fault) => fault.into(),
    }
}

#[inline(always)]
fn try_forward<F: IpHeader + Route>(
    skb: Skb,
    headers: &mut Headers<F::Addr>,
    record: Record<F>,
    arrival: Arrival,
) -> Result<(), Fault> {
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    let (addr, port, flags) = (flow.backend_addr, flow.backend_port, flow.flags);
    record::touch::<F>(record, headers, Direction::ToBackend);
    uplink::follow::<F>(skb, record, headers.l3);
    if may_be_bridged::<F>(arrival, flags) {
        stay_on_bridge::<F>(skb, headers, &addr)?;
    }
    rewrite::tuple::<F>(skb, headers, Side::Destination, addr, port)?;
    hint::set(skb, hint_after::<F>(flags, Hint::Done));
    Ok(())
}

/// Whether the replies of a flow with these flags may be bridged: not to an
/// address of this host (nor may a port send back what came in by it), nor where
/// this host is the backend's gateway.
#[inline(always)]
fn may_be_bridged<F: IpHeader>(arrival: Arrival, flags: u8) -> bool {
    flags & (Flow::<F::Addr>::MASQUERADE | Flow::<F::Addr>::ROUTED) == 0
        && (arrival == Arrival::Bridge
            || tables::config()
                .is_some_and(|config| config.flags & Config::PORT_HAS_BRIDGE_MAC != 0))
}

/// Where client and backend are ports of one bridge, replies are bridged and
/// never routed. Requests must be bridged too, or conntrack sees half of each
/// connection and calls it invalid (E2): give the frame the backend's MAC. Not
/// where the bridge leads to a gateway: replies come back by way of this host.
#[inline(always)]
fn stay_on_bridge<F: IpHeader + Route>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    backend: &F::Addr,
) -> Result<(), Fault> {
    let Some(device) = tables::device(skb.ifindex()).filter(|device| device.bridge != 0) else {
        return Ok(());
    };
    let mut route = F::route(&headers.ip.src, backend, device.bridge);
    // SAFETY: valid context and parameters of the stated size.
    let result = unsafe {
        fib_lookup(
            skb.raw().cast(),
            &raw mut route,
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    };
    if result == 0 && route.ifindex == device.bridge && F::is_neighbour(&route, backend) {
        skb.write::<[u8; 6]>(0, route.dmac)?;
    }
    Ok(())
}

/// A packet that cannot be translated. It must not pass where others like it
/// would be: whoever takes it would take it for one of the address itself.
#[inline(never)]
fn unreadable<F: IpHeader>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    if Arrival::of(*skb) != Arrival::Foreign
        && (choose::may_be_meant::<F>(scratch) || masquerade::is_reply::<F>(scratch))
    {
        return Outcome::drop(Counter::Unreadable);
    }
    hint::set(*skb, Hint::Entered);
    Outcome::NEXT
}

/// A later fragment whose first one was not seen. Half a datagram must never
/// pass, but only what is addressed to a Service is ours to drop.
#[inline(never)]
fn unknown_fragment<F: IpHeader>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    if opaque(may_be_for_frontend::<F>(&scratch.headers))
        && Arrival::of(*skb) != Arrival::Foreign
        && choose::frontend::<F>(scratch) != Destination::NotOurs
    {
        return Outcome::drop(Counter::FragmentUnknown);
    }
    // Egress may know the ports.
    let is_pretended = client::local_addr::<F>(&scratch.headers.ip.src).is_some();
    hint::set(*skb, outgoing::entered(is_pretended));
    Outcome::NEXT
}

/// A client talks straight to a backend from a port that it used to reach it
/// through a Service before: the backend's replies must not be taken for the
/// Service's (E13). Not if the packet is itself a reply of a flow, because the
/// two talk to each other through Services.
///
/// The backend of a masqueraded flow knows that by another address, and both may
/// go on: the flow gets another port between the hooks. Else of UDP the last use
/// counts, and a TCP connection must be over; whether one that looks open is, the
/// backend tells by its answer, see [`record::is_foreign_reply`].
///
/// Returns whether the datagram ends its sender's flow where it leaves. Until then
/// routing may drop it: it may pretend to come from the client. Only to a process of
/// this host it does not leave.
#[inline(never)]
fn direct<F: IpHeader + Sockets>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> bool {
    let headers = &scratch.headers;
    let is_datagram = headers.ip.protocol == Protocol::UDP;
    scratch.key = record::reply_key::<F>(headers);
    if is_datagram
        && record::to_backend::<F>(&mut scratch.key, &headers.ip.src, headers.src_port).is_some()
    {
        return false;
    }
    let is_local = client::local_addr::<F>(&headers.ip.dst).is_some();
    scratch.key = record::client_key::<F>(headers);
    let Some(record) = record::to_backend::<F>(&mut scratch.key, &headers.ip.dst, headers.dst_port)
    else {
        return false;
    };
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    if flow.flags & (Flow::<F::Addr>::OUTGOING | Flow::<F::Addr>::HOST) != 0 {
        return false;
    }
    if flow.flags & Flow::<F::Addr>::MASQUERADE != 0
        && masquerade::set_apart::<F>(skb, scratch, record)
    {
        return false;
    }
    if is_datagram && !is_local {
        return true;
    }
    if is_datagram || record::is_closing(flow) {
        F::remove(&scratch.key);
        tables::count(Counter::TupleClash);
    } else {
        record::mark_direct::<F>(record);
    }
    false
}
