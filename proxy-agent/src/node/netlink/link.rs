//! Decoding of netlink's messages about devices.

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    VlanProtocol,
};
use proxy_common::vlan::Vlan;

use crate::node::devices::{Layer, Link, LinkKind};

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        layer: layer(message.header.link_layer_type),
        master: None,
        kind: LinkKind::Hardware,
        mac: [0; 6],
        vlan: None,
        is_up: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::Running),
    };
    let mut lower = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(ifindex) => lower = Some(*ifindex),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Address(mac) => link.mac = mac[..].try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                link.vlan = vlan(infos);
                let mut infos = infos.iter();
                link.kind = infos
                    .find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(link_kind(kind, link.layer)),
                        _ => None,
                    })
                    .unwrap_or(LinkKind::Hardware);
            }
            _ => {}
        }
    }
    // The one below may be in another network namespace, where its number means
    // another device; then no packet with the tag comes in here.
    link.vlan = link.vlan.and_then(|vlan| {
        let uplink = lower?;
        Some(Vlan { uplink, ..vlan })
    });
    link
}

/// The VLAN that a device is for; its uplink is not known yet.
fn vlan(infos: &[LinkInfo]) -> Option<Vlan> {
    let mut data = infos.iter().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    });
    let (mut id, mut protocol) = (None, VlanProtocol::Ieee8021Q);
    for info in data.next()? {
        match info {
            InfoVlan::Id(number) => id = Some(*number),
            InfoVlan::Protocol(kind) => protocol = *kind,
            _ => {}
        }
    }
    Some(Vlan {
        uplink: 0,
        protocol: u16::from(protocol).to_be(),
        id: id?,
    })
}

fn link_kind(kind: &InfoKind, layer: Layer) -> LinkKind {
    match kind {
        InfoKind::Bridge => LinkKind::Bridge,
        InfoKind::Bond | InfoKind::Team => LinkKind::Bond,
        InfoKind::Ifb => LinkKind::Ifb,
        // With Ethernet header it is a tap, for a virtual machine.
        InfoKind::Tun if layer == Layer::Ethernet => LinkKind::Other,
        InfoKind::Tun
        | InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::BareUdp
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTap
        | InfoKind::GreTun6
        | InfoKind::GreTap6
        | InfoKind::ErSpan
        | InfoKind::Ip6ErSpan
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Xfrm
        | InfoKind::Wireguard => LinkKind::Tunnel,
        _ => LinkKind::Other,
    }
}

fn layer(kind: LinkLayerType) -> Layer {
    match kind {
        LinkLayerType::Ether => Layer::Ethernet,
        LinkLayerType::Loopback => Layer::Loopback,
        LinkLayerType::None
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Rawip => Layer::Ip,
        _ => Layer::Other,
    }
}
