//! Which devices carry programs, and what the programs are told of them.
//!
//! Pure: from what netlink says of links and addresses to what should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use proxy_common::{device::Device, vlan::Vlan};

use crate::config::LocalDetector;

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
    /// What it takes of another device, if it is one for a VLAN.
    pub vlan: Option<Vlan>,
    /// It is set up and has a carrier.
    pub is_up: bool,
}

/// What a device is made for, as far as it matters here.
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
    /// programs (ifb, which plugins shape pods' traffic with).
    Detour,
    /// veth, VLAN and the like: where they lead, only routes tell.
    Other,
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
    /// Length of the subnet's prefix.
    pub prefix_len: u8,
    /// Not on its way in or out (duplicate address detection, deprecation).
    pub usable: bool,
    /// Valid on its link only. Of those, only IPv6 ones are listed.
    pub link_local: bool,
}

impl Address {
    /// Whether it was assigned without a subnet, as load balancers' addresses
    /// are.
    fn is_single(&self) -> bool {
        match self.ip {
            IpAddr::V4(_) => self.prefix_len == 32,
            IpAddr::V6(_) => self.prefix_len == 128,
        }
    }
}

/// Where routes of the main table lead, by device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Devices of routes with a gateway, and of default routes.
    pub gateways: BTreeSet<u32>,
    /// Destinations of routes without a gateway.
    pub on_link: BTreeMap<u32, BTreeSet<IpNet>>,
}

impl Routes {
    /// Whether a route leads to pods by this device: to an address or range
    /// within those of pods, or where these are not known, to a single address
    /// that is not the node's own.
    fn lead_to_pods(&self, ifindex: u32, pods: &[IpNet], own: &[Address]) -> bool {
        let destinations = self.on_link.get(&ifindex).into_iter().flatten();
        let is_single =
            |destination: &IpNet| destination.prefix_len() == destination.max_prefix_len();
        let is_own = |ip: IpAddr| own.iter().any(|address| address.ip == ip);
        let mut foreign = destinations
            .filter(|destination| !(is_single(destination) && is_own(destination.addr())));
        foreign.any(|destination| {
            let is_same_family =
                |range: &&IpNet| range.addr().is_ipv4() == destination.addr().is_ipv4();
            let mut ranges = pods.iter().filter(is_same_family).peekable();
            if ranges.peek().is_none() {
                is_single(destination)
            } else {
                ranges.any(|range| range.contains(destination))
            }
        })
    }
}

/// A device that the programs have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub name: String,
    /// Whether programs are to run on it; else it is a bridge, whose ports
    /// have them.
    pub carries_programs: bool,
    /// Without [`Device::COVERED`], which depends on what became of the
    /// programs.
    pub device: Device,
}

impl Described {
    /// Whether its packets have no Ethernet header.
    pub fn layer3(&self) -> bool {
        self.device.flags & Device::LAYER3 != 0
    }

    /// Whether it is a port of a bridge that has its MAC address: Linux gives
    /// bridges one of their ports', unless somebody sets it.
    pub fn has_bridge_mac(&self) -> bool {
        self.device.bridge != 0 && self.device.mac == self.device.bridge_mac
    }
}

/// What the choice of devices depends on besides the devices themselves.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    pub detector: &'a LocalDetector,
    pub routes: &'a Routes,
    /// Ranges that pods have addresses of, as far as they are known.
    pub pods: &'a [IpNet],
    /// The Node object's addresses, for devices that have none.
    pub node_v4: Option<Ipv4Addr>,
    pub node_v6: Option<Ipv6Addr>,
}

/// The devices to describe, by ifindex. Programs go on all but loopback,
/// detours, and those that have others enslaved, whose packets pass the enslaved
/// ones. Of the latter, bridges are described too: routes lead to them (E19).
pub fn described(
    links: &[Link],
    addresses: &[Address],
    around: &Surroundings<'_>,
) -> BTreeMap<u32, Described> {
    let masters: BTreeSet<u32> = links.iter().filter_map(|link| link.master).collect();
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.ifindex, link)).collect();
    links
        .iter()
        .filter(|link| matches!(link.layer, Layer::Ethernet | Layer::Ip))
        .filter(|link| link.kind != LinkKind::Detour)
        .filter_map(|link| {
            let carries_programs = !masters.contains(&link.ifindex);
            if !carries_programs && link.kind != LinkKind::Bridge {
                return None;
            }
            let master = link
                .master
                .and_then(|master| by_index.get(&master).copied());
            let described = Described {
                name: link.name.clone(),
                carries_programs,
                device: describe(link, master, links, addresses, around),
            };
            Some((link.ifindex, described))
        })
        .collect()
}

/// How deep the kernel lets devices be enslaved to each other.
const MAX_NESTING: u32 = 8;

/// Whether all that comes in by a device passes programs: it has them itself,
/// or all of the devices enslaved to it do, directly or further down.
pub fn is_covered(ifindex: u32, links: &[Link], has_programs: &impl Fn(u32) -> bool) -> bool {
    covers(ifindex, links, has_programs, MAX_NESTING)
}

/// A list may show two moments, and in both together devices in a circle.
fn covers(ifindex: u32, links: &[Link], has_programs: &impl Fn(u32) -> bool, depth: u32) -> bool {
    let mut ports = links
        .iter()
        .filter(|link| link.master == Some(ifindex))
        .map(|link| link.ifindex)
        .peekable();
    has_programs(ifindex)
        || depth > 0
            && ports.peek().is_some()
            && ports.all(|port| covers(port, links, has_programs, depth - 1))
}

fn describe(
    link: &Link,
    master: Option<&Link>,
    links: &[Link],
    addresses: &[Address],
    around: &Surroundings<'_>,
) -> Device {
    let bridge = master.filter(|master| master.kind == LinkKind::Bridge);
    let mut flags = 0;
    let is_uplink = leads_away(link, around.routes);
    if is_uplink {
        flags |= Device::UPLINK;
    }
    if link.layer == Layer::Ip {
        flags |= Device::LAYER3;
    }
    if !link.is_up {
        flags |= Device::DOWN;
    }
    let is_pods = |link: &Link| around.detector.is_pod_device(&link.name) == Some(true);
    let is_detected = is_pods(link) || master.is_some_and(is_pods);
    let is_outside = is_uplink || is_in_vlan_outside(link, links, around.routes);
    if is_detected {
        flags |= Device::LOCAL_CLIENTS;
    }
    // The device that routing sends packets to, which for a port is its master.
    let routed = master.unwrap_or(link).ifindex;
    if !is_uplink && (is_detected || around.routes.lead_to_pods(routed, around.pods, addresses)) {
        flags |= Device::POD_ROUTES;
    }
    let v4 = masquerade_address(IpAddr::is_ipv4, routed, links, addresses, around.node_v4);
    let v6 = masquerade_address(IpAddr::is_ipv6, routed, links, addresses, around.node_v6);
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

/// Whether what is reached by a device is no part of this node.
fn leads_away(link: &Link, routes: &Routes) -> bool {
    matches!(link.kind, LinkKind::Hardware | LinkKind::Tunnel)
        || routes.gateways.contains(&link.ifindex)
}

/// Whether a device is one for a VLAN of a network outside.
fn is_in_vlan_outside(link: &Link, links: &[Link], routes: &Routes) -> bool {
    link.vlan.is_some_and(|vlan| {
        let mut cards = links.iter().filter(|card| leads_away(card, routes));
        cards.any(|card| way_out(card, links, MAX_NESTING) == Some(vlan.uplink))
    })
}

/// The devices by which routing leads to what is in VLANs, for `VLANS`.
pub fn vlans(links: &[Link]) -> BTreeMap<Vlan, u32> {
    let known = links.iter().filter_map(|link| {
        let uplink = way_out(link, links, MAX_NESTING)?;
        Some((link.vlan?, uplink))
    });
    known.collect()
}

/// The device by which routing leads to what is behind this one: the outermost
/// bridge or bond that it is a part of, or itself. Not known of other masters.
fn way_out(link: &Link, links: &[Link], depth: u32) -> Option<u32> {
    let Some(master) = link.master else {
        return Some(link.ifindex);
    };
    let is_way = |master: &&Link| matches!(master.kind, LinkKind::Bridge | LinkKind::Bond);
    let mut found = links.iter().filter(|link| link.ifindex == master);
    let master = found.next().filter(is_way)?;
    way_out(master, links, depth.checked_sub(1)?)
}

/// The address of one family that a device's packets are masqueraded to, where
/// the kernel does not tell (before Linux 6.7): its own, else the Node object's,
/// else any, else its own link-local one.
fn masquerade_address(
    is_of_family: fn(&IpAddr) -> bool,
    ifindex: u32,
    links: &[Link],
    addresses: &[Address],
    node: Option<impl Into<IpAddr>>,
) -> Option<IpAddr> {
    let usable = || {
        addresses
            .iter()
            .filter(move |address| address.usable && is_of_family(&address.ip))
    };
    let own = |link_local: bool| {
        usable()
            .filter(move |address| address.ifindex == ifindex && address.link_local == link_local)
            // The first one of those with a subnet: others may be anybody's.
            .min_by_key(|address| address.is_single())
            .map(|address| address.ip)
    };
    let is_loopback = |ifindex: u32| {
        let mut links = links.iter().filter(|link| link.ifindex == ifindex);
        links.all(|link| link.layer == Layer::Loopback)
    };
    let any = || {
        usable()
            .filter(|address| !address.link_local && !is_loopback(address.ifindex))
            .min_by_key(|address| (address.is_single(), **address))
            .map(|address| address.ip)
    };
    own(false)
        .or_else(|| node.map(Into::into))
        .or_else(any)
        .or_else(|| own(true))
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
            kind: LinkKind::Other,
            mac: [2, 0, 0, 0, 0, u8::try_from(ifindex).expect("small")],
            vlan: None,
            is_up: true,
        }
    }

    fn address(ifindex: u32, ip: &str) -> Address {
        Address {
            ifindex,
            ip: ip.parse().expect("an address"),
            prefix_len: 24,
            usable: true,
            link_local: false,
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
                kind: LinkKind::Bridge,
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
            Link {
                kind: LinkKind::Detour,
                ..link(7, "ifb0")
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

    fn plan(detector: &LocalDetector) -> BTreeMap<u32, Described> {
        let around = Surroundings {
            detector,
            routes: &Routes::default(),
            pods: &[],
            node_v4: None,
            node_v6: None,
        };
        described(&node(), &addresses(), &around)
    }

    #[test]
    fn hooks_all_but_loopback_masters_detours_and_strange_ones() {
        let described = plan(&LocalDetector::NodeCidr);
        let devices = described.values();
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
        assert!(described[&5].layer3() && !described[&2].layer3());
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

    /// Neither a load balancer's address nor one on its way out is taken while
    /// there is another, and a link-local one only then.
    #[test]
    fn masquerades_to_what_others_can_reach() {
        let of = |addresses: &[Address]| {
            let address =
                masquerade_address(IpAddr::is_ipv6, 2, &node(), addresses, None::<Ipv6Addr>);
            address.map(|ip| ip.to_string())
        };
        let usual = address(2, "fd00::2");
        let vip = Address {
            prefix_len: 128,
            ..address(2, "fd00::1")
        };
        let deprecated = Address {
            usable: false,
            ..address(2, "fd00::3")
        };
        let link_local = Address {
            link_local: true,
            ..address(2, "fe80::2")
        };
        let elsewhere = address(3, "fd00::9");
        let all = [deprecated, link_local, vip, usual, elsewhere];
        assert_eq!(of(&all).as_deref(), Some("fd00::2"));
        assert_eq!(of(&[link_local, vip]).as_deref(), Some("fd00::1"));
        assert_eq!(of(&[link_local, elsewhere]).as_deref(), Some("fd00::9"));
        assert_eq!(of(&[deprecated, link_local]).as_deref(), Some("fe80::2"));
        assert_eq!(of(&[deprecated]), None);
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
            routes: &Routes::default(),
            pods: &[],
            node_v4: Some([192, 168, 9, 9].into()),
            node_v6: None,
        };
        let described = described(&node(), &addresses(), &around);
        assert_eq!(
            Ipv4Addr::from(described[&5].device.masquerade_v4),
            Ipv4Addr::new(192, 168, 9, 9)
        );
    }

    /// E19
    #[test]
    fn hardware_tunnels_and_ways_to_gateways_lead_away() {
        let mut links = node();
        links[1].kind = LinkKind::Hardware;
        links[4].kind = LinkKind::Tunnel;
        let uplinks = |gateways: &[u32]| {
            let around = Surroundings {
                detector: &LocalDetector::NodeCidr,
                routes: &Routes {
                    gateways: gateways.iter().copied().collect(),
                    on_link: BTreeMap::new(),
                },
                pods: &[],
                node_v4: None,
                node_v6: None,
            };
            let described = described(&links, &addresses(), &around).into_iter();
            let uplinks = described.filter(|(_, each)| each.device.flags & Device::UPLINK != 0);
            uplinks.map(|(ifindex, _)| ifindex).collect::<Vec<_>>()
        };
        assert_eq!(uplinks(&[]), [2, 5]);
        assert_eq!(uplinks(&[3]), [2, 3, 5], "a bridge that leads to a gateway");
        assert_eq!(uplinks(&[4]), [2, 4, 5]);
    }

    /// Clients outside are reached by the device that routes name.
    #[test]
    fn clients_are_reached_by_the_outermost_bridge_or_bond() {
        let card = |ifindex, master| Link {
            kind: LinkKind::Hardware,
            master,
            ..link(ifindex, "card")
        };
        let of_kind = |ifindex, kind| Link {
            kind,
            ..link(ifindex, "master")
        };
        let bond = Link {
            master: Some(3),
            ..of_kind(8, LinkKind::Bond)
        };
        let mut links = node();
        links.extend([
            bond,
            of_kind(9, LinkKind::Bond),
            of_kind(10, LinkKind::Other),
        ]);
        links.extend([card(20, None), card(21, Some(9)), card(22, Some(8))]);
        links.extend([card(23, Some(3)), card(24, Some(10)), card(25, Some(99))]);
        let around = Surroundings {
            detector: &LocalDetector::InterfaceNamePrefix("pod".to_owned()),
            routes: &Routes::default(),
            pods: &[],
            node_v4: None,
            node_v6: None,
        };
        let uplinks = |links: &[Link]| {
            let described = described(links, &addresses(), &around).into_iter();
            let uplinks = described.map(|(ifindex, each)| (ifindex, each.device.uplink));
            uplinks
                .filter(|(_, uplink)| *uplink != 0)
                .collect::<Vec<_>>()
        };
        let expected = [(20, 20), (21, 9), (22, 3), (23, 3)];
        assert_eq!(uplinks(&links), expected, "a VRF is no way out");
        for link in &mut links {
            link.name = "pod".into();
        }
        assert_eq!(
            uplinks(&links),
            [],
            "what is said to be pods is not outside"
        );
        let circle = [card(1, Some(2)), card(2, Some(1))];
        assert_eq!(uplinks(&circle), []);
    }

    /// A VLAN of an uplink is one, and so is the bridge that it is a port of.
    #[test]
    fn vlans_of_uplinks_are_uplinks() {
        let above = |ifindex, uplink, id| Link {
            vlan: Some(Vlan {
                uplink,
                protocol: 0x8100_u16.to_be(),
                id,
            }),
            ..link(ifindex, "vlan")
        };
        let card = |ifindex, master| Link {
            kind: LinkKind::Hardware,
            master,
            ..link(ifindex, "card")
        };
        let bond = Link {
            kind: LinkKind::Bond,
            ..link(9, "bond")
        };
        let mut links = node();
        links.extend([bond, card(20, None), card(21, Some(9))]);
        let bridged = Link {
            master: Some(3),
            ..above(32, 20, 200)
        };
        links.extend([above(30, 9, 100), above(31, 20, 100), bridged]);
        links.push(above(33, 4, 100));
        let found = vlans(&links).into_iter();
        let found: Vec<_> = found.map(|(vlan, by)| (vlan.uplink, vlan.id, by)).collect();
        let expected = [(4, 100, 33), (9, 100, 30), (20, 100, 31), (20, 200, 3)];
        assert_eq!(found, expected);
        let around = Surroundings {
            detector: &LocalDetector::NodeCidr,
            routes: &Routes::default(),
            pods: &[],
            node_v4: None,
            node_v6: None,
        };
        let described = described(&links, &addresses(), &around);
        let uplinks = [20, 21, 30, 31, 32, 33, 4].map(|ifindex| described[&ifindex].device.uplink);
        assert_eq!(
            uplinks,
            [20, 9, 30, 31, 3, 0, 0],
            "not that of a pod's device"
        );
    }

    #[test]
    fn the_programs_know_which_links_are_down() {
        let mut links = node();
        links[1].is_up = false;
        let around = Surroundings {
            detector: &LocalDetector::NodeCidr,
            routes: &Routes::default(),
            pods: &[],
            node_v4: None,
            node_v6: None,
        };
        let described = described(&links, &addresses(), &around).into_iter();
        let down = described.filter(|(_, each)| each.device.flags & Device::DOWN != 0);
        assert_eq!(down.map(|(ifindex, _)| ifindex).collect::<Vec<_>>(), [2]);
    }

    /// A device of which nothing is known leads to no pods: it may be a second
    /// network of the node, or a VRRP address on a macvlan.
    #[test]
    fn devices_lead_to_pods_that_are_known() {
        let nets = |text: &str| -> Vec<IpNet> {
            let words = text.split_whitespace();
            words.map(|net| net.parse().expect("a prefix")).collect()
        };
        let flagged = |detector: &LocalDetector, on_link: &[(u32, &str)], pods: &str| {
            let on_link = on_link.iter().map(|(ifindex, destinations)| {
                (*ifindex, nets(destinations).into_iter().collect())
            });
            let around = Surroundings {
                detector,
                routes: &Routes {
                    gateways: BTreeSet::from([2]),
                    on_link: on_link.collect(),
                },
                pods: &nets(pods),
                node_v4: None,
                node_v6: None,
            };
            let described = described(&node(), &addresses(), &around).into_iter();
            let flagged = described.filter(|(_, each)| each.device.flags & Device::POD_ROUTES != 0);
            flagged.map(|(ifindex, _)| ifindex).collect::<Vec<_>>()
        };
        let by_address = LocalDetector::NodeCidr;
        let pods = "10.244.0.0/16 fd00:244::/48";
        assert_eq!(flagged(&by_address, &[], pods), [0; 0]);
        let subnets = [(3, "10.244.1.0/24"), (5, "198.51.100.0/24")];
        assert_eq!(
            flagged(&by_address, &subnets, pods),
            [3, 4],
            "a bridge and its port"
        );
        let v6 = [(3, "fd00:244::/64"), (5, "2001:db8::/64 fe80::/64")];
        assert_eq!(flagged(&by_address, &v6, pods), [3, 4]);
        let single = [(5, "10.244.1.9/32"), (4, "192.0.2.1/32")];
        assert_eq!(flagged(&by_address, &single, pods), [5]);
        assert_eq!(
            flagged(&by_address, &single, ""),
            [5],
            "routes to ports do not count"
        );
        assert_eq!(flagged(&by_address, &subnets, ""), [0; 0]);
        let own = [(5, "fd00:244::1/128")];
        assert_eq!(flagged(&by_address, &own, ""), [0; 0]);
        let uplink = [(2, "10.244.1.9/32")];
        assert_eq!(flagged(&by_address, &uplink, pods), [0; 0]);
        let bridge = LocalDetector::BridgeInterface("cni0".to_owned());
        assert_eq!(flagged(&bridge, &[], ""), [3, 4]);
    }

    /// E2
    #[test]
    fn a_bridge_may_have_the_mac_of_a_port() {
        let mut links = node();
        let sharing = |links: &[Link]| {
            let around = Surroundings {
                detector: &LocalDetector::NodeCidr,
                routes: &Routes::default(),
                pods: &[],
                node_v4: None,
                node_v6: None,
            };
            let described = described(links, &addresses(), &around).into_iter();
            let sharing = described.filter(|(_, each)| each.has_bridge_mac());
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

    /// Of a bridge all ports must have programs, and of a bond that is a port
    /// all of its devices.
    #[test]
    fn a_bridge_is_covered_by_its_ports() {
        let mut links = node();
        let enslaved = |ifindex, master| Link {
            master: Some(master),
            ..link(ifindex, "port")
        };
        links.extend([enslaved(8, 3), enslaved(9, 8), enslaved(10, 8)]);
        let covered = |ifindex, attached: &[u32]| {
            is_covered(ifindex, &links, &|ifindex| attached.contains(&ifindex))
        };
        assert!(covered(2, &[2]) && !covered(2, &[4]));
        assert!(covered(3, &[4, 9, 10]));
        assert!(!covered(3, &[4, 9]) && !covered(3, &[9, 10]));
        let circle = [enslaved(1, 2), enslaved(2, 1)];
        assert!(!is_covered(1, &circle, &|_| false));
    }
}
