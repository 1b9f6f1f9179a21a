//! Processes of this host as clients of frontends.
//!
//! Their packets enter by no device, so they are translated where they leave
//! and sent on to where the backend is; replies are handed back as if they had
//! come in by the device they were sent by, which is the one the host's
//! routing and reverse-path filter expect (E5).

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
};
use proxy_common::{counter::Counter, flow::Flow};

use crate::{
    flow::{
        deliver,
        fragment::{self, Hook},
        open::{self, Origin},
        outgoing, ports,
        record::{Direction, Record},
        table,
    },
    hooks::{Datapath, masquerade},
    lookup::frontend::Destination,
    maps::{
        scratch::{self, Scratch},
        tail_call,
    },
    packet::{
        headers::{Part, Side},
        hint::{self, Hint},
        parse,
        skb::Skb,
        verdict::{Fault, Opened, Outcome},
    },
    reply::{
        echo,
        refuse::{self, To},
    },
    route,
};

/// The slow path of packets that this host's own processes send to what may be
/// a frontend: a program of its own, for the verifier's sake.
#[inline(always)]
pub fn slow<F: Datapath>(skb: Skb) -> i32 {
    let (_, link) = hint::resume(skb);
    let skb = skb.on(link);
    let Some(scratch) = scratch::to_scratch::<F>(skb) else {
        return Outcome::NEXT.action();
    };
    let headers = &mut scratch.headers;
    if headers.ip.part == Part::Later && !fragment::complete::<F>(headers, Hook::Egress) {
        return unknown_fragment::<F>(scratch).action();
    }
    let outcome = to_frontend::<F>(&skb, scratch);
    if outcome == Outcome::AGAIN {
        // What turned out to be for no frontend, egress sees to.
        hint::keep(skb, Hint::None);
        return tail_call::go_slow(skb, F::SLOW.egress).action();
    }
    outcome.action()
}

/// A later fragment whose first one was not translated. What is addressed to a
/// Service is dropped, as at ingress; the filter takes more than that for ours.
#[inline(never)]
fn unknown_fragment<F: Datapath>(scratch: &mut Scratch<F::Addr>) -> Outcome {
    if F::look_up(&scratch.headers, &mut scratch.frontend) == Destination::NotOurs {
        Outcome::NEXT
    } else {
        Outcome::drop(Counter::FragmentUnknown)
    }
}

/// Host to frontend: dst := backend, and off to the backend's device.
#[inline(never)]
fn to_frontend<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    if scratch.headers.ip.protocol == F::ICMP
        && let Some(outcome) = echo::answer::<F>(skb, scratch, To::Host)
    {
        return outcome;
    }
    if let Some(outcome) = find_or_open::<F>(skb, scratch) {
        return outcome;
    }
    let headers = &scratch.headers;
    let Some(record) = table::opened::<F>(&scratch.key, &headers.ip.dst, headers.dst_port) else {
        return Outcome::AGAIN;
    };
    record.touch(&scratch.headers, Direction::ToBackend);
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
fn follow_route<F: Datapath>(record: Record<F>, uplink: u32) {
    // One that a client elsewhere has opened from this address is the host's now.
    if record.flow().flags & Flow::<F::Addr>::HOST == 0 {
        record.add_flags(Flow::<F::Addr>::HOST);
    }
    if record.flow().uplink != uplink {
        record.set_uplink(uplink);
    }
}

/// Puts the key of the packet's flow into scratch memory; opens the flow if
/// there is none. `Some`: there is no flow to follow.
#[inline(never)]
fn find_or_open<F: Datapath>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Option<Outcome> {
    if open::existing::<F>(&scratch.headers, &mut scratch.key, &mut scratch.frontend).is_some() {
        return None;
    }
    if scratch.headers.ip.part == Part::Later {
        return Some(Outcome::drop(Counter::FragmentUnknown));
    }
    let opened = open::open::<F>(skb, scratch, Origin::Host);
    open::log_opened::<F>(*skb, &scratch.headers, opened);
    match opened {
        Opened::Flow => None,
        // The filter takes more than frontends' addresses for theirs.
        Opened::NotOurs => Some(outgoing::note::<F>(skb, scratch, Hint::None)),
        refused => {
            let refused = refuse::answer::<F>(skb, scratch, refused, To::Host);
            Some(refused)
        }
    }
}

#[inline(never)]
fn send<F: Datapath>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    let skb = *skb;
    let flow = record.flow();
    let (addr, port) = (flow.backend_addr, flow.backend_port);
    let mut route = F::route(&scratch.headers.ip.src, &addr, skb.ifindex());
    route.__bindgen_anon_1.tot_len = parse::longest::<F>(&skb, &scratch.headers) as u16;
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

/// Client and backend are both this host. It refuses packets that come in with
/// an address of its own as source, so the client gets the frontend's.
#[inline(never)]
fn to_itself<F: Datapath>(
    skb: &Skb,
    scratch: &mut Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    record.add_flags(Flow::<F::Addr>::FRONTEND_ADDRESS);
    let flow = record.flow();
    let frontend = flow.frontend_addr;
    scratch.reply.masquerade_addr = frontend;
    let Some(masquerade_port) = ports::allocate::<F>(
        skb,
        &scratch.headers,
        &scratch.key,
        &mut scratch.reply,
        record,
    ) else {
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
    Ok(deliver::deliver(*skb, skb.ifindex()))
}
