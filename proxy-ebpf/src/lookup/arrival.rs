//! The addressee of frames that come in.

use crate::{
    maps::node,
    packet::skb::{Addressee, Link, Skb, same_mac},
};

/// The addressee of a frame that came in.
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
            Addressee::OtherMac => match node::device(skb.ifindex()) {
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
