//! `VLANS`: which uplink takes the packets of a VLAN.

use crate::pod;

/// Key of `VLANS`. The value is the ifindex of the device by which routing leads to
/// the clients in the VLAN, as [`Device::uplink`] for those without a tag.
///
/// [`Device::uplink`]: crate::device::Device::uplink
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan {
    /// The uplink below the VLAN.
    pub uplink: u32,
    /// Ethertype of the tag, network order.
    pub protocol: u16,
    pub id: u16,
}

impl Vlan {
    /// The part of a tag that is the VLAN's number; the rest is priority.
    pub const ID: u16 = 0x0fff;
}

const _: () = assert!(size_of::<Vlan>() == 8);
pod!(Vlan);
