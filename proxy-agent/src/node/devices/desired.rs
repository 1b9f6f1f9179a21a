//! The devices that should carry programs, and their rows of `DEVICES`.
//!
//! Pure: from the links and addresses that netlink lists to the desired state.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use proxy_common::device::Device;

use super::{
    link::{Address, Layer, Link, LinkKind, MAX_NESTING, Routes},
    masquerade::masquerade_address,
    pods::lead_to_pods,
    uplinks::{is_in_vlan_outside, leads_away, way_out},
};
use crate::config::LocalDetector;

/// A device that the programs have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredDevice {
    pub name: String,
    /// True if programs should run on it; otherwise it is a bridge, whose ports
    /// have them.
    pub carries_programs: bool,
    /// Without [`Device::COVERED`], which is set once the programs are attached.
    pub device: Device,
}

impl DesiredDevice {
    /// Returns whether its packets have no Ethernet header.
    pub fn layer3(&self) -> bool {
        self.device.flags & Device::LAYER3 != 0
    }

    /// Returns whether this may be another device than the one that had its ifindex
    /// before. A renamed one looks like that, too.
    pub fn may_be_another(&self, other: &Self) -> bool {
        self.name != other.name
            || self.device.mac != other.device.mac
            || self.layer3() != other.layer3()
    }

    /// Returns whether it is a port of a bridge that has its MAC address: Linux gives
    /// bridges one of their ports', unless somebody sets it.
    pub fn has_bridge_mac(&self) -> bool {
        self.device.bridge != 0 && self.device.mac == self.device.bridge_mac
    }
}

/// The devices that `DEVICES` should have, by ifindex.
pub type Desired = BTreeMap<u32, DesiredDevice>;

/// Inputs to the choice of devices, besides the devices themselves.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    pub detector: &'a LocalDetector,
    pub routes: &'a Routes,
    /// Ranges that pods have addresses of, as far as they are known.
    pub pods: &'a [IpNet],
    /// The Node object's addresses, for devices that have none.
    pub node_v4: Option<Ipv4Addr>,
    pub node_v6: Option<Ipv6Addr>,
}

/// The devices that `DEVICES` should have, by ifindex. Programs go on all but loopback,
/// ifb devices, and those that have others enslaved, whose packets pass the enslaved
/// ones. Of the latter, bridges are desired too: routes lead to them (E19).
pub fn desired(links: &[Link], addresses: &[Address], inputs: &Inputs<'_>) -> Desired {
    let masters: BTreeSet<u32> = links.iter().filter_map(|link| link.master).collect();
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.ifindex, link)).collect();
    links
        .iter()
        .filter(|link| matches!(link.layer, Layer::Ethernet | Layer::Ip))
        .filter(|link| link.kind != LinkKind::Ifb)
        .filter_map(|link| {
            let carries_programs = !masters.contains(&link.ifindex);
            if !carries_programs && link.kind != LinkKind::Bridge {
                return None;
            }
            let master = link
                .master
                .and_then(|master| by_index.get(&master).copied());
            let device = DesiredDevice {
                name: link.name.clone(),
                carries_programs,
                device: describe(link, master, links, addresses, inputs),
            };
            Some((link.ifindex, device))
        })
        .collect()
}

fn describe(
    link: &Link,
    master: Option<&Link>,
    links: &[Link],
    addresses: &[Address],
    inputs: &Inputs<'_>,
) -> Device {
    let bridge = master.filter(|master| master.kind == LinkKind::Bridge);
    let mut flags = 0;
    let is_uplink = leads_away(link, inputs.routes);
    if is_uplink {
        flags |= Device::UPLINK;
    }
    if link.layer == Layer::Ip {
        flags |= Device::LAYER3;
    }
    if !link.is_up {
        flags |= Device::DOWN;
    }
    let is_pods = |link: &Link| inputs.detector.is_pod_device(&link.name) == Some(true);
    let is_detected = is_pods(link) || master.is_some_and(is_pods);
    let is_outside = is_uplink || is_in_vlan_outside(link, links, inputs.routes);
    if is_detected {
        flags |= Device::LOCAL_CLIENTS;
    }
    // The device that routing sends packets to, which for a port is its master.
    let routed = master.unwrap_or(link).ifindex;
    if !is_uplink && (is_detected || lead_to_pods(inputs.routes, routed, inputs.pods, addresses)) {
        flags |= Device::POD_ROUTES;
    }
    let v4 = masquerade_address(IpAddr::is_ipv4, routed, links, addresses, inputs.node_v4);
    let v6 = masquerade_address(IpAddr::is_ipv6, routed, links, addresses, inputs.node_v6);
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
        uplink: if is_outside && !is_detected {
            way_out(link, links, MAX_NESTING).unwrap_or(0)
        } else {
            0
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{addresses, flagged, inputs, node},
        *,
    };

    fn plan(detector: &LocalDetector) -> Desired {
        let inputs = Inputs {
            detector,
            ..inputs()
        };
        desired(&node(), &addresses(), &inputs)
    }

    #[test]
    fn loopback_masters_ifb_devices_and_unknown_layers_carry_no_programs() {
        let desired = plan(&LocalDetector::NodeCidr);
        let devices = desired.values();
        let names: Vec<_> = devices
            .map(|device| (device.name.as_str(), device.carries_programs))
            .collect();
        let expected = [
            ("eth0", true),
            ("cni0", false),
            ("veth1", true),
            ("wg0", true),
        ];
        assert_eq!(names, expected, "bridges are known, but without programs");
        assert!(desired[&5].layer3() && !desired[&2].layer3());
    }

    /// E4: as netfilter would choose, in both families.
    #[test]
    fn masquerades_to_the_address_of_the_way_out() {
        let attached = plan(&LocalDetector::NodeCidr);
        let of = |ifindex: u32| {
            let device = attached[&ifindex].device;
            (
                Ipv4Addr::from(device.masquerade_v4).to_string(),
                Ipv6Addr::from(device.masquerade_v6).to_string(),
            )
        };
        assert_eq!(of(2), ("192.168.1.2".into(), "fd00::2".into()));
        assert_eq!(of(4), ("10.244.0.1".into(), "fd00:244::1".into()));
        assert_eq!(of(5).0, "192.168.1.2", "none of its own: another device's");
        assert_eq!(attached[&4].device.bridge, 3);
        assert_eq!(attached[&4].device.bridge_mac, [2, 0, 0, 0, 0, 3]);
    }

    /// A pod is known by the bridge it is on, or by a device name's prefix (S68).
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
        let inputs = Inputs {
            node_v4: Some([192, 168, 9, 9].into()),
            ..inputs()
        };
        let desired = desired(&node(), &addresses(), &inputs);
        assert_eq!(
            Ipv4Addr::from(desired[&5].device.masquerade_v4),
            Ipv4Addr::new(192, 168, 9, 9)
        );
    }

    #[test]
    fn the_programs_know_which_links_are_down() {
        let mut links = node();
        links[1].is_up = false;
        let desired = desired(&links, &addresses(), &inputs());
        assert_eq!(flagged(&desired, Device::DOWN), [2]);
    }

    /// The programs know whether a bridge has the MAC address of one of its ports (E2).
    #[test]
    fn a_bridge_may_have_the_mac_of_a_port() {
        let mut links = node();
        let sharing = |links: &[Link]| {
            let desired = desired(links, &addresses(), &inputs()).into_iter();
            let sharing = desired.filter(|(_, each)| each.has_bridge_mac());
            sharing.map(|(ifindex, _)| ifindex).collect::<Vec<_>>()
        };
        assert_eq!(sharing(&links), [0; 0]);
        links[2].mac = links[3].mac;
        assert_eq!(sharing(&links), [4]);
        // Every routed pod's device may have one MAC address, too.
        links[1].mac = links[4].mac;
        links[2].mac = [2, 0, 0, 0, 0, 3];
        assert_eq!(sharing(&links), [0; 0]);
    }
}
