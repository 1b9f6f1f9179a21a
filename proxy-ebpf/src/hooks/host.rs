//! Processes of this host as clients of frontends.
//!
//! Their packets enter by no device, so they are translated where they leave
//! and sent on to where the backend is; replies are handed back as if they had
//! come in by the device they were sent by, which is the one the host's
//! routing and reverse-path filter expect (E5).

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
    },
    helpers::generated::{bpf_redirect, bpf_skb_change_head},
};
use proxy_common::{counter::Counter, device::Device, flow::Flow, net::Protocol};

use crate::{
    flow::{
        fragment::{self, Hook},
        masquerade,
        open::{self, Opened, Origin},
        outgoing,
        record::{self, Direction, Record},
        uplink,
    },
    hooks::ingress,
    lookup::choose::{self, Destination},
    maps::tables::{self, Scratch},
    packet::{
        hint::{self, Hint},
        parse::{self, Headers, IpHeader, Part},
        rewrite::Side,
        skb::{ETH_LEN, Link, Skb},
        verdict::{Fault, Outcome},
    },
    reply::{
        echo,
        refuse::{self, To},
    },
    route::{self, Route},
};

/// `gso_size` of SCTP: a list of packets that its sender cut itself.
const GSO_BY_FRAGS: u32 = 0xffff;

/// The slow path of packets that this host's own processes send to what may be
/// a frontend: a program of its own, for the verifier's sake.
#[inline(always)]
pub fn slow<F: IpHeader + Route>(skb: Skb) -> i32 {
    let (_, link) = hint::resume(skb);
    let skb = skb.on(link);
    let Some(scratch) = parse::to_scratch::<F>(skb) else {
        return Outcome::NEXT.action();
    };
    let headers = &mut scratch.headers;
    if headers.ip.part == Part::Later && !fragment::complete::<F>(headers, Hook::Egress) {
        return unknown_fragment::<F>(scratch).action();
    }
    let outcome = to_frontend::<F>(&skb, scratch);
    if outcome == Outcome::AGAIN {
        hint::keep(skb, Hint::None);
        tables::go_slow(skb, F::SLOW.host);
        return Outcome::drop(Counter::RewriteFailed).action();
    }
    outcome.action()
}

/// A later fragment whose first one was not translated. What is addressed to a
/// Service is dropped, as at ingress; the filter takes more than that for ours.
#[inline(never)]
fn unknown_fragment<F: IpHeader>(scratch: &mut Scratch<F::Addr>) -> Outcome {
    if choose::frontend::<F>(scratch) == Destination::NotOurs {
        Outcome::NEXT
    } else {
        Outcome::drop(Counter::FragmentUnknown)
    }
}

/// Host to frontend: dst := backend, and off to the backend's device.
#[inline(never)]
fn to_frontend<F: IpHeader + Route>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    if scratch.headers.ip.protocol == F::ICMP
        && let Some(outcome) = echo::answer::<F>(skb, scratch, To::Host)
    {
        return outcome;
    }
    if let Some(outcome) = find_or_open::<F>(skb, scratch) {
        return outcome;
    }
    let headers = &scratch.headers;
    let Some(record) = record::opened::<F>(&scratch.key, &headers.ip.dst, headers.dst_port) else {
        return Outcome::AGAIN;
    };
    record::touch::<F>(record, &scratch.headers, Direction::ToBackend);
    follow_route::<F>(record, skb.ifindex());
    fragment::remember::<F>(&scratch.headers, Hook::Egress);
    match send::<F>(skb, scratch, record) {
        Ok(outcome) => outcome,
        Err(fault) => fault.into(),
    }
}

/// Hands the replies back at the device that the host's routing chooses now: it
/// would not take them from another one.
#[inline(always)]
fn follow_route<F: IpHeader>(record: Record<F>, uplink: u32) {
    let flow = record.as_ptr();
    // SAFETY: see `Record`; an aligned store of four bytes.
    unsafe {
        // One that a client elsewhere has opened from this address is the host's now.
        if (*flow).flags & Flow::<F::Addr>::HOST == 0 {
            (*flow).flags |= Flow::<F::Addr>::HOST;
        }
        if (*flow).uplink != uplink {
            (*flow).uplink = uplink;
        }
    }
}

/// Puts the key of the packet's flow into scratch memory; opens the flow if
/// there is none. `Some`: there is no flow to follow.
#[inline(never)]
fn find_or_open<F: IpHeader + Route>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    if ingress::existing::<F>(scratch).is_some() {
        return None;
    }
    if scratch.headers.ip.part == Part::Later {
        return Some(Outcome::drop(Counter::FragmentUnknown));
    }
    let opened = open::open::<F>(skb, scratch, Origin::Host);
    ingress::log_opened::<F>(*skb, &scratch.headers, opened);
    match opened {
        Opened::Flow => None,
        // The filter takes more than frontends' addresses for theirs.
        Opened::NotOurs => Some(outgoing::note::<F>(skb, scratch)),
        refused => {
            let refused = refuse::answer::<F>(skb, scratch, refused, To::Host);
            Some(refused)
        }
    }
}

#[inline(never)]
fn send<F: IpHeader + Route>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    let skb = *skb;
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    let (addr, port) = (flow.backend_addr, flow.backend_port);
    let mut route = F::route(&scratch.headers.ip.src, &addr, skb.ifindex());
    route.__bindgen_anon_1.tot_len = longest::<F>(&skb, &scratch.headers) as u16;
    match route::look_up(&skb, &mut route, 0) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
            if let Err(outcome) = masquerade::change_port::<F>(&skb, scratch, record, To::Host) {
                return Ok(outcome);
            }
            F::rewrite(skb, &mut scratch.headers, Side::Destination, &addr, port)?;
            fragment::remember::<F>(&scratch.headers, Hook::Egress);
            hint::set(skb, Hint::Masquerade);
            Ok(route::redirect::<F>(&route, &addr))
        }
        BPF_FIB_LKUP_RET_NOT_FWDED => to_itself::<F>(&skb, scratch, record),
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            // SAFETY: the helper has written this field of the union.
            let mtu = unsafe { route.__bindgen_anon_1.mtu_result };
            Ok(refuse::too_big::<F>(
                &skb,
                scratch,
                u32::from(mtu),
                To::Host,
            ))
        }
        BPF_FIB_LKUP_RET_FWD_DISABLED => Ok(Outcome::drop(Counter::ForwardingOff)),
        _ => Ok(Outcome::drop(Counter::NoRoute)),
    }
}

/// Length of the IP packet, or of the longest segment that it will be cut to.
/// 0 if that is not known; the look-up then does not compare it.
#[inline(never)]
pub fn longest<F: IpHeader>(skb: &Skb, headers: &Headers<F::Addr>) -> u32 {
    let segment = skb.gso_size();
    if segment == 0 {
        return skb.len() - headers.l3;
    }
    if segment == GSO_BY_FRAGS {
        return 0;
    }
    let transport = if headers.ip.protocol == Protocol::TCP {
        let offset: u8 = skb.read(headers.ip.l4 + 12).unwrap_or(0);
        u32::from(offset >> 4) * 4
    } else {
        8
    };
    headers.ip.l4 - headers.l3 + transport + segment
}

/// Client and backend are both this host. It refuses packets that come in with
/// an address of its own as source, so the client gets the frontend's.
#[inline(never)]
fn to_itself<F: IpHeader + Route>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    // SAFETY: see `Record`; a one-byte store that every packet of the flow
    // repeats.
    unsafe { (*record.as_ptr()).flags |= Flow::<F::Addr>::FRONTEND_ADDRESS };
    // SAFETY: see `Record`.
    let flow = unsafe { record.as_ref() };
    let frontend = flow.frontend_addr;
    let Some(masquerade_port) = masquerade::allocate::<F>(skb, scratch, record, &frontend) else {
        return Ok(Outcome::drop(Counter::MasqueradePortsExhausted));
    };
    let headers = &mut scratch.headers;
    F::rewrite(
        *skb,
        headers,
        Side::Destination,
        &flow.backend_addr,
        flow.backend_port,
    )?;
    F::rewrite(*skb, headers, Side::Source, &frontend, masquerade_port)?;
    hint::set(*skb, Hint::Done);
    Ok(deliver(*skb, skb.ifindex()))
}

/// Lets a translated packet of this flow go on to the client: to a process of this
/// host by the device it expects.
#[inline(always)]
pub fn hand_back<A>(skb: Skb, flow: &Flow<A>) -> Outcome {
    if flow.flags & Flow::<A>::HOST == 0 {
        return uplink::go_on(skb, flow);
    }
    let uplink = flow.uplink;
    hint::set(skb, Hint::Done);
    if !skb.is_host_originated() && enter_alike(uplink, skb.ifindex()) {
        return Outcome::NEXT;
    }
    deliver(skb, uplink)
}

/// Whether what comes in by one device enters the host as by the other: it is
/// the same, or a port of the same bridge. That would take the sender of a frame
/// that is moved to another port for a neighbour there.
#[inline(always)]
fn enter_alike(one: u32, other: u32) -> bool {
    one == other
        || match (tables::device(one), tables::device(other)) {
            (Some(one), Some(other)) => one.bridge != 0 && one.bridge == other.bridge,
            _ => false,
        }
}

/// Hands a packet to this host as if it had come in by device `ifindex`.
#[inline(always)]
fn deliver(skb: Skb, ifindex: u32) -> Outcome {
    let Some(device) = tables::device(ifindex) else {
        return Outcome::drop(Counter::NoRoute);
    };
    if device.flags & Device::LAYER3 == 0 {
        if skb.link == Link::None && add_ethernet(&skb).is_err() {
            return Fault.into();
        }
        let mac = if device.bridge == 0 {
            device.mac
        } else {
            device.bridge_mac
        };
        if skb.write::<[u8; 6]>(0, mac).is_err() {
            return Fault.into();
        }
    }
    // SAFETY: the helper checks the device.
    Outcome::redirect(unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) })
}

/// Gives a packet from a device without link-layer header an Ethernet header.
#[inline(never)]
pub fn add_ethernet(skb: &Skb) -> Result<(), Fault> {
    // SAFETY: the helper checks its arguments.
    if unsafe { bpf_skb_change_head(skb.raw(), ETH_LEN, 0) } != 0 {
        return Err(Fault);
    }
    skb.write::<[u8; 12]>(0, [0; 12])?;
    skb.write::<u16>(ETH_LEN - 2, skb.protocol())
}
