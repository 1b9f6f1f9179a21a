//! Programs for tests and measurements, which are no part of the object that the agent
//! has.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    hooks::{egress, ingress},
    packet::{
        hint::{self, Hint},
        skb::{Link, Skb},
        verdict::Outcome,
    },
};

/// `ingress` for measurements: a test run repeats it on one and the same
/// packet, which must not look translated the second time.
#[classifier]
pub fn ingress_repeated(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx, Link::Ethernet);
    hint::set(skb, Hint::None);
    ingress::run(skb)
}

/// `ingress` and then `egress` for tests: a test run repeats it once on one packet,
/// which keeps its hint from hook to hook as in the kernel.
#[classifier]
pub fn through(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx, Link::Ethernet);
    if mark_once(skb) {
        ingress::run(skb)
    } else {
        egress::run(skb)
    }
}

/// Does nothing: the floor that measurements are taken above.
#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    Outcome::NEXT.action()
}

/// Sets the packet's mark. Whether it had none.
#[inline(always)]
fn mark_once(skb: Skb) -> bool {
    // SAFETY: the kernel passes a valid context, of which this field is readable and
    // writable.
    unsafe {
        let before = (*skb.raw()).mark;
        (*skb.raw()).mark = 1;
        before == 0
    }
}
