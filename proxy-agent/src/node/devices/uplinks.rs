//! Devices that lead away from the node, and by which of them routing reaches
//! what is behind a port or in a VLAN.

use std::collections::BTreeMap;

use proxy_common::vlan::Vlan;

use super::link::{Link, LinkKind, MAX_NESTING, Routes};

/// Returns whether what is reached by a device is no part of this node.
pub(super) fn leads_away(link: &Link, routes: &Routes) -> bool {
    matches!(link.kind, LinkKind::Hardware | LinkKind::Tunnel)
        || routes.gateways.contains(&link.ifindex)
}

/// Returns whether a device is one for a VLAN of a network outside.
pub(super) fn is_in_vlan_outside(link: &Link, links: &[Link], routes: &Routes) -> bool {
    link.vlan.is_some_and(|vlan| {
        let mut cards = links.iter().filter(|card| leads_away(card, routes));
        cards.any(|card| way_out(card, links, MAX_NESTING) == Some(vlan.uplink))
    })
}

/// The devices by which routing leads to what is in VLANs, for `VLANS`.
pub(super) fn vlans(links: &[Link]) -> BTreeMap<Vlan, u32> {
    let known = links.iter().filter_map(|link| {
        let uplink = way_out(link, links, MAX_NESTING)?;
        Some((link.vlan?, uplink))
    });
    known.collect()
}

/// The device by which routing leads to what is behind this one: the outermost
/// bridge or bond that it is a part of, or itself. Not known of other masters.
pub(super) fn way_out(link: &Link, links: &[Link], depth: u32) -> Option<u32> {
    let Some(master) = link.master else {
        return Some(link.ifindex);
    };
    let is_way = |master: &&Link| matches!(master.kind, LinkKind::Bridge | LinkKind::Bond);
    let mut found = links.iter().filter(|link| link.ifindex == master);
    let master = found.next().filter(is_way)?;
    way_out(master, links, depth.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use proxy_common::device::Device;

    use super::{
        super::{
            desired::{Inputs, desired},
            fixtures::{addresses, flagged, inputs, link, node},
        },
        *,
    };
    use crate::config::LocalDetector;

    /// Network cards, tunnels and devices of routes with a gateway lead away (E19).
    #[test]
    fn hardware_tunnels_and_ways_to_gateways_lead_away() {
        let mut links = node();
        links[1].kind = LinkKind::Hardware;
        links[4].kind = LinkKind::Tunnel;
        let uplinks = |gateways: &[u32]| {
            let routes = Routes {
                gateways: gateways.iter().copied().collect(),
                on_link: BTreeMap::new(),
            };
            let inputs = Inputs {
                routes: &routes,
                ..inputs()
            };
            flagged(&desired(&links, &addresses(), &inputs), Device::UPLINK)
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
        let inputs = Inputs {
            detector: &LocalDetector::InterfaceNamePrefix("pod".to_owned()),
            ..inputs()
        };
        let uplinks = |links: &[Link]| {
            let desired = desired(links, &addresses(), &inputs).into_iter();
            let uplinks = desired.map(|(ifindex, each)| (ifindex, each.device.uplink));
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
        let desired = desired(&links, &addresses(), &inputs());
        let uplinks = [20, 21, 30, 31, 32, 33, 4].map(|ifindex| desired[&ifindex].device.uplink);
        assert_eq!(
            uplinks,
            [20, 9, 30, 31, 3, 0, 0],
            "not that of a pod's device"
        );
    }
}
