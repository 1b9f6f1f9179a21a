//! Packets that are handed to this host.

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::generated::bpf_redirect};
use proxy_common::{counter::Counter, device::Device, flow::Flow};

use crate::{
    flow::uplink,
    maps::node,
    packet::{
        hint::{self, Hint},
        skb::{self, Link, Skb},
        verdict::{Fault, Outcome},
    },
};

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

/// Returns whether what comes in by one device enters the host as by the other: it is
/// the same, or a port of the same bridge. That would take the sender of a frame
/// that is moved to another port for a neighbour there.
#[inline(always)]
fn enter_alike(one: u32, other: u32) -> bool {
    one == other
        || match (node::device(one), node::device(other)) {
            (Some(one), Some(other)) => one.bridge != 0 && one.bridge == other.bridge,
            _ => false,
        }
}

/// Hands a packet to this host as if it had come in by device `ifindex`.
#[inline(always)]
pub fn deliver(skb: Skb, ifindex: u32) -> Outcome {
    let Some(device) = node::device(ifindex) else {
        return Outcome::drop(Counter::NoRoute);
    };
    if skb.untag().is_err() {
        return Fault.into();
    }
    if device.flags & Device::LAYER3 == 0 {
        if skb.link == Link::None && skb::add_ethernet(&skb).is_err() {
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
