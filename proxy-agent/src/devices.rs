//! Which devices carry programs, and what the programs are told of them.
//!
//! Pure: from what netlink says of links and addresses to what should be.

pub mod netlink;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proxy_common::device::Device;

use crate::config::LocalDetector;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub layer: Layer,
    /// The device it is enslaved to.
    pub master: Option<u32>,
    pub is_bridge: bool,
    pub mac: [u8; 6],
}

/// What the device's frames begin with.
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
    /// Valid everywhere, and not on its way in or out (duplicate address
    /// detection, deprecation).
    pub usable: bool,
}

/// A device that carries programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooked {
    pub name: String,
    pub device: Device,
}

impl Hooked {
    /// Whether its packets have no Ethernet header.
    pub fn layer3(&self) -> bool {
        self.device.flags & Device::LAYER3 != 0
    }
}

/// What the choice of devices depends on besides the devices themselves.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    pub detector: &'a LocalDetector,
    /// The Node object's addresses, for devices that have none.
    pub node_v4: Option<Ipv4Addr>,
    pub node_v6: Option<Ipv6Addr>,
}

/// The devices to hook: all but loopback and those that have others enslaved,
/// whose packets pass the enslaved ones.
pub fn hooked(
    links: &[Link],
    addresses: &[Address],
    around: &Surroundings<'_>,
) -> BTreeMap<u32, Hooked> {
    let masters: BTreeSet<u32> = links.iter().filter_map(|link| link.master).collect();
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.ifindex, link)).collect();
    links
        .iter()
        .filter(|link| matches!(link.layer, Layer::Ethernet | Layer::Ip))
        .filter(|link| !masters.contains(&link.ifindex))
        .map(|link| {
            let master = link
                .master
                .and_then(|master| by_index.get(&master).copied());
            let hooked = Hooked {
                name: link.name.clone(),
                device: describe(link, master, links, addresses, around),
            };
            (link.ifindex, hooked)
        })
        .collect()
}

fn describe(
    link: &Link,
    master: Option<&Link>,
    links: &[Link],
    addresses: &[Address],
    around: &Surroundings<'_>,
) -> Device {
    let bridge = master.filter(|master| master.is_bridge);
    let mut flags = 0;
    if link.layer == Layer::Ip {
        flags |= Device::LAYER3;
    }
    let is_pods = |link: &Link| around.detector.is_pod_device(&link.name) == Some(true);
    if is_pods(link) || master.is_some_and(is_pods) {
        flags |= Device::LOCAL_CLIENTS;
    }
    // The address that netfilter's MASQUERADE would take: the one of the
    // device that routing sends the packet to, which for a port is its master.
    let routed = master.unwrap_or(link).ifindex;
    let own = |is: fn(&IpAddr) -> bool| {
        addresses
            .iter()
            .find(|address| address.ifindex == routed && address.usable && is(&address.ip))
            .map(|address| address.ip)
    };
    let any = |is: fn(&IpAddr) -> bool| {
        addresses
            .iter()
            .filter(|address| address.usable && is(&address.ip))
            .filter(|address| {
                links
                    .iter()
                    .any(|link| link.ifindex == address.ifindex && link.layer != Layer::Loopback)
            })
            .min()
            .map(|address| address.ip)
    };
    let v4 = own(IpAddr::is_ipv4)
        .or(around.node_v4.map(IpAddr::V4))
        .or_else(|| any(IpAddr::is_ipv4));
    let v6 = own(IpAddr::is_ipv6)
        .or(around.node_v6.map(IpAddr::V6))
        .or_else(|| any(IpAddr::is_ipv6));
    Device {
        bridge: bridge.map_or(0, |bridge| bridge.ifindex),
        masquerade_v4: match v4 {
            Some(IpAddr::V4(ip)) => ip.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        },
        masquerade_v6: match v6 {
            Some(IpAddr::V6(ip)) => ip.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        },
        mac: link.mac,
        bridge_mac: bridge.map_or([0; 6], |bridge| bridge.mac),
        flags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            layer: Layer::Ethernet,
            master: None,
            is_bridge: false,
            mac: [2, 0, 0, 0, 0, u8::try_from(ifindex).expect("small")],
        }
    }

    fn address(ifindex: u32, ip: &str) -> Address {
        Address {
            ifindex,
            ip: ip.parse().expect("an address"),
            usable: true,
        }
    }

    fn node() -> Vec<Link> {
        vec![
            Link {
                layer: Layer::Loopback,
                ..link(1, "lo")
            },
            link(2, "eth0"),
            Link {
                is_bridge: true,
                ..link(3, "cni0")
            },
            Link {
                master: Some(3),
                ..link(4, "veth1")
            },
            Link {
                layer: Layer::Ip,
                ..link(5, "wg0")
            },
            Link {
                layer: Layer::Other,
                ..link(6, "can0")
            },
        ]
    }

    fn addresses() -> Vec<Address> {
        vec![
            address(1, "127.0.0.1"),
            address(2, "192.168.1.2"),
            address(2, "fd00::2"),
            address(3, "10.244.0.1"),
            address(3, "fd00:244::1"),
        ]
    }

    fn plan(detector: &LocalDetector) -> BTreeMap<u32, Hooked> {
        let around = Surroundings {
            detector,
            node_v4: None,
            node_v6: None,
        };
        hooked(&node(), &addresses(), &around)
    }

    #[test]
    fn hooks_all_but_loopback_masters_and_strange_ones() {
        let hooked = plan(&LocalDetector::NodeCidr);
        let names: Vec<_> = hooked.values().map(|hooked| hooked.name.as_str()).collect();
        assert_eq!(names, ["eth0", "veth1", "wg0"]);
        assert!(hooked[&5].layer3() && !hooked[&2].layer3());
    }

    /// E4: as netfilter would choose, in both families.
    #[test]
    fn masquerades_to_the_address_of_the_way_out() {
        let hooked = plan(&LocalDetector::NodeCidr);
        let of = |ifindex: u32| {
            let device = hooked[&ifindex].device;
            (
                Ipv4Addr::from(device.masquerade_v4).to_string(),
                Ipv6Addr::from(device.masquerade_v6).to_string(),
            )
        };
        assert_eq!(of(2), ("192.168.1.2".into(), "fd00::2".into()));
        assert_eq!(of(4), ("10.244.0.1".into(), "fd00:244::1".into()));
        assert_eq!(of(5).0, "192.168.1.2", "none of its own: another device's");
        assert_eq!(hooked[&4].device.bridge, 3);
        assert_eq!(hooked[&4].device.bridge_mac, [2, 0, 0, 0, 0, 3]);
    }

    /// S68
    #[test]
    fn pods_are_known_by_their_bridge_or_their_prefix() {
        let flags = |detector: &LocalDetector, ifindex: u32| {
            plan(detector)[&ifindex].device.flags & Device::LOCAL_CLIENTS != 0
        };
        let bridge = LocalDetector::BridgeInterface("cni0".to_owned());
        let prefix = LocalDetector::InterfaceNamePrefix("veth".to_owned());
        for detector in [bridge, prefix] {
            assert!(flags(&detector, 4));
            assert!(!flags(&detector, 2));
        }
        assert!(!flags(&LocalDetector::NodeCidr, 4));
    }

    #[test]
    fn the_node_address_comes_before_that_of_any_device() {
        let around = Surroundings {
            detector: &LocalDetector::NodeCidr,
            node_v4: Some([192, 168, 9, 9].into()),
            node_v6: None,
        };
        let hooked = hooked(&node(), &addresses(), &around);
        assert_eq!(
            Ipv4Addr::from(hooked[&5].device.masquerade_v4),
            Ipv4Addr::new(192, 168, 9, 9)
        );
    }
}
