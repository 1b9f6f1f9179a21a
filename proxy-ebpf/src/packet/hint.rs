//! Hints from ingress to egress about a packet, in `skb->tc_index` (E11).
//!
//! A hint saves look-ups and nothing else: the kernel carries the field
//! unchanged from hook to hook, but another program may overwrite it, and then
//! egress decides as if there were no hint. Egress clears it, so that it never
//! reaches a pod or an outer packet.

use crate::packet::skb::{Link, Skb};

const MAGIC: u32 = 0x7ad0;
const MASK: u32 = 0xfff0;
/// On the way to the slow path: the device has no Ethernet header.
const LAYER3: u32 = 8;

/// The knowledge of a packet that is passed on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Nothing.
    None,
    /// Complete: no hook has anything left to do.
    Done,
    /// As `Done`, of a flow that may be new: netfilter may give its packets
    /// another source yet, which egress looks at (see `outgoing`).
    Opened,
    /// Led to its backend; its source must still be masqueraded.
    Masquerade,
    /// Not addressed to a frontend when it entered; may still be a reply.
    Entered,
    /// As `Entered`, a datagram from a client straight to the backend of its flow:
    /// see `egress::is_used_directly`.
    Direct,
    /// Addressed to another host, so only bridged through, or from an address of
    /// this node, which did not send it: no connection of this node's.
    Foreign,
}

#[inline(always)]
pub fn get(skb: Skb) -> Hint {
    let value = skb.tc_index();
    if value & MASK != MAGIC {
        return Hint::None;
    }
    match value & !MASK {
        1 => Hint::Done,
        2 => Hint::Masquerade,
        3 => Hint::Entered,
        4 => Hint::Foreign,
        5 => Hint::Opened,
        6 => Hint::Direct,
        _ => Hint::None,
    }
}

#[inline(always)]
pub fn set(skb: Skb, hint: Hint) {
    skb.set_tc_index(match hint {
        Hint::None => 0,
        Hint::Done => MAGIC | 1,
        Hint::Masquerade => MAGIC | 2,
        Hint::Entered => MAGIC | 3,
        Hint::Foreign => MAGIC | 4,
        Hint::Opened => MAGIC | 5,
        Hint::Direct => MAGIC | 6,
    });
}

/// Keeps hint and kind of device for the slow path, which is another program.
#[inline(always)]
pub fn keep(skb: Skb, hint: Hint) {
    set(skb, hint);
    let layer3 = if skb.link == Link::None { LAYER3 } else { 0 };
    skb.set_tc_index(MAGIC | skb.tc_index() & !MASK | layer3);
}

/// Returns what [`keep`] kept, and clears it.
#[inline(always)]
pub fn resume(skb: Skb) -> (Hint, Link) {
    let link = if skb.tc_index() & LAYER3 == 0 {
        Link::Ethernet
    } else {
        Link::None
    };
    skb.set_tc_index(skb.tc_index() & !LAYER3);
    (take(skb), link)
}

/// Reads the hint and clears it.
#[inline(always)]
pub fn take(skb: Skb) -> Hint {
    let hint = get(skb);
    if hint != Hint::None {
        skb.set_tc_index(0);
    }
    hint
}
