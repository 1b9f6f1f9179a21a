//! `DEVICES`: what the programs need to know of the device they run on.

use crate::{
    net::{AddrV4, AddrV6},
    pod,
};

/// Value of `DEVICES`; the key is the device's ifindex.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Device {
    /// Ifindex of the bridge the device is a port of, else 0.
    pub bridge: u32,
    /// Address that traffic leaving here is masqueraded to; zero if none (E4).
    pub masquerade_v4: AddrV4,
    pub masquerade_v6: AddrV6,
    /// The device's own MAC address; zero where it has none.
    pub mac: [u8; 6],
    /// The bridge's MAC address: a frame that came in on a port is for this
    /// host if it is addressed to it (E12).
    pub bridge_mac: [u8; 6],
    /// [`Device::LAYER3`] and the other flags.
    pub flags: u32,
    /// Device by which routing leads to the clients that come in here, if they are
    /// outside: this one, or the bridge or bond that it is a port of. 0 if what is
    /// here is a part of this node, or that is not known.
    pub uplink: u32,
}

impl Device {
    /// Packets on this device have no Ethernet header (E24).
    pub const LAYER3: u32 = 1;
    /// The local detector counts what comes in here as pods of this node
    /// (detectLocalMode `BridgeInterface`, `InterfaceNamePrefix`; S68).
    pub const LOCAL_CLIENTS: u32 = 2;
    /// Leads away from this node: what is reached by it is not a pod of this
    /// node. A network card, a tunnel, or the device of a default route.
    pub const UPLINK: u32 = 4;
    /// Packets that come in by it pass the programs: it runs them itself, or it is
    /// a bridge and all of its ports do (E19).
    pub const COVERED: u32 = 8;
    /// Leads to pods of this node, by what is known of them: the local detector,
    /// or a route to an address or range of pods without a gateway. Never set
    /// with [`Device::UPLINK`].
    pub const POD_ROUTES: u32 = 16;
    /// Its link is down: what leaves by it is lost.
    pub const DOWN: u32 = 32;
}

const _: () = assert!(size_of::<Device>() == 44);
pod!(Device);
