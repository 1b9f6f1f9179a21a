//! Symmetric return: replies to a client outside leave by the uplink that its
//! packets come in by.
//!
//! A reply is routed with the backend's address as its source, and a node with
//! several network cards may have rules about that (`ip rule from POD`): it would
//! leave by another card with the address that the client used at the first one, and
//! networks drop that. What network plugins do about it with connection marks looks
//! for that address where netfilter sees the backend's already.
//!
//! The flow remembers the uplink, and no more: by which next hop it leads to the
//! client, and whether it does at all, routing is asked with the address that was
//! used. So packets that come in one way on purpose, by a load balancer's tunnel
//! or network, are answered by the other one as before.

use proxy_common::{device::Device, flow::Flow, vlan::Vlan};

use crate::{
    flow::record::Record,
    maps::{node, tables::Tables},
    packet::{
        skb::{ETH_LEN, Skb},
        verdict::Outcome,
    },
};

/// [`entered_by`] on the slow path.
#[inline(never)]
pub fn entered_by_slowly(skb: &Skb, l3: u32) -> u32 {
    entered_by(*skb, l3)
}

/// The uplink that a packet came in by; 0 if it is none, or has more than one VLAN
/// tag. `l3` is the offset of its IP header.
#[inline(always)]
fn entered_by(skb: Skb, l3: u32) -> u32 {
    const TAG: u32 = 4;
    let uplink = node::device(skb.ifindex()).map_or(0, |device| device.uplink);
    let in_frame = l3 - skb.header_len();
    let (mut protocol, mut tag) = skb.tag();
    if uplink == 0 || in_frame != 0 && (in_frame != TAG || protocol != 0) {
        return 0;
    }
    if in_frame != 0 {
        let (Some(kind), Some(content)) = (skb.read(ETH_LEN - 2), skb.read::<u16>(ETH_LEN)) else {
            return 0;
        };
        (protocol, tag) = (kind, u16::from_be(content));
    }
    let id = tag & Vlan::ID;
    // Without a number it is a mere priority.
    if id == 0 {
        return uplink;
    }
    let vlan = Vlan {
        uplink,
        protocol,
        id,
    };
    node::uplink_of(&vlan).unwrap_or(0)
}

#[inline(always)]
pub fn is_tagged(skb: Skb, l3: u32) -> bool {
    l3 != skb.header_len() || skb.tag().0 != 0
}

/// Notes that a packet of a client came in by this device.
#[inline(always)]
pub fn follow<F: Tables>(skb: Skb, record: Record<F>, l3: u32) {
    let flow = record.flow();
    if flow.uplink == 0
        || flow.flags & Flow::<F::Addr>::HOST != 0
        || flow.uplink == skb.ifindex() && !is_tagged(skb, l3)
    {
        return;
    }
    let uplink = match entered_by(skb, l3) {
        0 => Flow::<F::Addr>::NO_UPLINK,
        uplink => uplink,
    };
    if flow.uplink != uplink {
        record.set_uplink(uplink);
    }
}

/// The same on the slow path.
#[inline(never)]
pub fn follow_slowly<F: Tables>(skb: &Skb, record: Record<F>, l3: u32) {
    follow::<F>(*skb, record, l3);
}

/// Returns whether a reply of this flow that leaves by this device should leave by
/// another one. Not if the client has become a pod of this node.
#[inline(always)]
pub fn is_other<A>(skb: Skb, flow: &Flow<A>) -> bool {
    let uplink = flow.uplink;
    if uplink == 0 || uplink == skb.ifindex() || flow.flags & Flow::<A>::HOST != 0 {
        return false;
    }
    node::device(skb.ifindex())
        .is_none_or(|device| device.uplink != uplink && device.flags & Device::POD_ROUTES == 0)
}

/// Lets a translated reply of this flow go on to a client elsewhere.
#[inline(always)]
pub fn go_on<A>(skb: Skb, flow: &Flow<A>) -> Outcome {
    if is_other(skb, flow) {
        Outcome::BY_UPLINK
    } else {
        Outcome::NEXT
    }
}
