//! Tells what would become of a packet, by the code that decides it.

use proxy_common::{
    explain::{Answer, Decision},
    family::{V4, V6},
};

use crate::{
    flow::open,
    hooks::Datapath,
    maps::{scratch, tables},
    packet::{ip::IpHeader, parse, skb::Skb, verdict::Outcome},
};

/// Answers the question in `EXPLAIN` about the packet of this test run.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    if let Some(network) = parse::network(skb) {
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
    let decision: Decision =
        open::explain::<F>(&skb, scratch, explain.question, &mut explain.answer);
    let answer: &mut Answer = &mut explain.answer;
    answer.decision = decision as u8;
}
