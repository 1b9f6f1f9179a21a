//! Devices and addresses, as netlink lists them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proxy_common::vlan::Vlan;

/// Maximum depth to which the kernel lets devices be enslaved to each other.
pub(super) const MAX_NESTING: u32 = 8;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub layer: Layer,
    /// The device it is enslaved to.
    pub master: Option<u32>,
    pub kind: LinkKind,
    pub mac: [u8; 6],
    /// For the device of a VLAN: the VLAN, and the device it is on.
    pub vlan: Option<Vlan>,
    /// It is set up and has a carrier.
    pub is_up: bool,
}

/// The kinds of devices that matter to the choice of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    /// One way by several devices.
    Bond,
    /// Made by a driver, not by an administrator or a network plugin.
    Hardware,
    /// Its packets go on to another host.
    Tunnel,
    /// Gives packets back to the device they came from, where they pass the
    /// programs; plugins shape pods' traffic with it.
    Ifb,
    /// veth, VLAN and the like: only routes tell where they lead.
    Other,
}

/// The header that the device's frames begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Ethernet,
    /// IP packets without header (tun, `WireGuard`, ipip …).
    Ip,
    Loopback,
    /// Nothing that IP programs could make sense of.
    Other,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ifindex: u32,
    pub ip: IpAddr,
    /// Length of the subnet's prefix.
    pub prefix_len: u8,
    /// Not on its way in or out (duplicate address detection, deprecation).
    pub usable: bool,
    /// Valid on its link only. Of those, only IPv6 ones are listed.
    pub link_local: bool,
}

impl Address {
    /// Returns whether it was assigned without a subnet, as load balancers' addresses
    /// are.
    pub(super) fn is_single(&self) -> bool {
        match self.ip {
            IpAddr::V4(_) => self.prefix_len == 32,
            IpAddr::V6(_) => self.prefix_len == 128,
        }
    }
}

/// Routes of the main table, by device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Devices of routes with a gateway, and of default routes.
    pub gateways: BTreeSet<u32>,
    /// Destinations of routes without a gateway.
    pub on_link: BTreeMap<u32, BTreeSet<IpNet>>,
}
