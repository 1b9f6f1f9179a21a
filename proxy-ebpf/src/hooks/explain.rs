//! Tells what would become of a packet, by the code that decides it.

use proxy_common::{
    explain::{Answer, Decision},
    family::{V4, V6},
    frontend::Frontend,
};

use crate::{
    flow::decide::{self, Grounds},
    hooks::Datapath,
    lookup::backend,
    maps::{
        scratch::{self, Scratch},
        tables,
    },
    packet::{
        ip::{IpHeader, PULL},
        parse,
        skb::Skb,
        verdict::Outcome,
    },
};

/// Answers the question in `EXPLAIN` about the packet of this test run.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    if let Some(network) = parse::network(skb, PULL) {
        if network.ethertype == V4::ETHERTYPE {
            answer::<V4>(skb);
        } else if network.ethertype == V6::ETHERTYPE {
            answer::<V6>(skb);
        }
    }
    Outcome::NEXT.action()
}

#[inline(always)]
fn answer<F: Datapath>(skb: Skb) {
    let (Some(explain), Some(scratch)) = (tables::explain(), scratch::to_scratch::<F>(skb)) else {
        return;
    };
    // SAFETY: the value lives as long as the program, and the agent waits for
    // the answer before it touches it again.
    let explain = unsafe { &mut *explain };
    let mut grounds = Grounds::UNKNOWN;
    let decision = decide::decide::<F>(&skb, scratch, explain.question, &mut grounds);
    fill::<F>(scratch, decision, &grounds, &mut explain.answer);
}

#[inline(always)]
fn fill<F: Datapath>(
    scratch: &Scratch<F::Addr>,
    decision: Decision,
    grounds: &Grounds,
    answer: &mut Answer,
) {
    answer.decision = decision as u8;
    if !decision.has_frontend() {
        return;
    }
    let frontend = scratch.frontend;
    answer.frontend = frontend;
    answer.client = grounds.client as u8;
    answer.masquerade = grounds.masquerade as u8;
    answer.flags = flag(grounds.remembered, Answer::REMEMBERED)
        | flag(grounds.local_policy, Answer::LOCAL_POLICY);
    if decision != Decision::Forward {
        return;
    }
    answer.backend = scratch.flow.backend;
    let local = frontend.flags & Frontend::LOCAL_SET != 0;
    if let Some(range) = backend::slot_range::<F>(frontend.service, local) {
        answer.range = range;
    }
}

#[inline(always)]
fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}
