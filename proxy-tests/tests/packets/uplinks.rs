//! The uplink that leads to a client, learned from its packets.

use std::collections::BTreeMap;

use proxy_common::{device::Device, flow::Flow, net::AddrV4, vlan::Vlan};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, MAC_BRIDGE, Packet, ServicePort},
};
use rstest::rstest;

/// The device of test runs, and one that is not there.
const SELF: u32 = 1;
const OTHER: u32 = 999_999;
const DOT1Q: u16 = 0x8100;
const DOT1AD: u16 = 0x88a8;
const NO_UPLINK: u32 = Flow::<AddrV4>::NO_UPLINK;

fn uplink_of(datapath: &Datapath, packet: &Packet) -> u32 {
    datapath.flows_of(packet.src)[0].uplink
}

fn enter_by(datapath: &mut Datapath, uplink: u32) {
    datapath.device(|device| device.uplink = uplink);
}

/// A flow remembers the uplink, and follows its client to another one and back,
/// on both paths. Where no uplink leads to a client, none ever does.
#[rstest]
fn flows_follow_their_clients(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let slowly = |packet: Packet| packet.with_fragment(7, 0, true);
    let packets = [
        Packet::syn(cast.outsider(), cast.vip()),
        Packet::udp(cast.outsider_with(1, 5000), cast.vip()),
    ];
    for open in packets {
        for (uplink, known) in [(SELF, SELF), (OTHER, OTHER), (0, 0)] {
            datapath.forget_flows();
            enter_by(&mut datapath, uplink);
            datapath.run(Hook::Ingress, &open);
            assert_eq!(uplink_of(&datapath, &open), known);
        }
        let next = match open.protocol() {
            6 => Packet::data(open.src, open.dst),
            _ => open.clone(),
        };
        for next in [next.clone(), slowly(next)] {
            enter_by(&mut datapath, SELF);
            datapath.run(Hook::Ingress, &next);
            assert_eq!(uplink_of(&datapath, &open), 0, "what never had one");

            datapath.forget_flows();
            enter_by(&mut datapath, OTHER);
            datapath.run(Hook::Ingress, &open);
            for (uplink, known) in [(OTHER, OTHER), (0, NO_UPLINK), (OTHER, OTHER), (SELF, SELF)] {
                enter_by(&mut datapath, uplink);
                datapath.run(Hook::Ingress, &next);
                assert_eq!(uplink_of(&datapath, &open), known, "by {uplink}");
            }
            datapath.forget_flows();
            enter_by(&mut datapath, 0);
            datapath.run(Hook::Ingress, &open);
        }
    }
}

/// A packet with a VLAN tag comes in by the VLAN's uplink, with the tag's kind; by
/// none that is known where there are two tags, or no device takes the VLAN.
#[rstest]
fn tagged_packets_come_in_by_the_vlans_uplink(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values((DOT1Q, DOT1AD), (DOT1AD, DOT1Q))] tags: (u16, u16),
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]));
    enter_by(&mut datapath, SELF);
    let (known, unknown) = tags;
    let vlan = Vlan {
        uplink: SELF,
        protocol: known.to_be(),
        id: 7,
    };
    datapath.vlans(&BTreeMap::from([(vlan, OTHER)]));
    let with = |packet: &Packet, tags: &[u16]| Packet {
        tags: tags.to_vec(),
        ..packet.clone()
    };
    let syn = Packet::syn(cast.outsider(), cast.vip());
    let data = Packet::data(cast.outsider(), cast.vip());
    let cases: [(&[u16], u32); 4] = [
        (&[], SELF),
        (&[known], OTHER),
        (&[unknown], 0),
        (&[unknown, known], 0),
    ];
    for (tags, uplink) in cases {
        datapath.forget_flows();
        datapath.run(Hook::Ingress, &with(&syn, tags));
        assert_eq!(uplink_of(&datapath, &syn), uplink, "{tags:x?}");
    }
    datapath.forget_flows();
    datapath.run(Hook::Ingress, &syn);
    for (tags, uplink) in cases {
        datapath.run(Hook::Ingress, &with(&data, tags));
        let uplink = if uplink == 0 { NO_UPLINK } else { uplink };
        assert_eq!(uplink_of(&datapath, &syn), uplink, "{tags:x?}");
    }
}

/// Replies that leave by another device than the client's uplink are translated
/// alike, and go the way they are on: where the uplink is gone or down, where this
/// device is a part of it, and where the client is a pod of this node by now.
#[rstest]
fn replies_go_on_where_the_uplink_leads_nowhere(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(0, Device::DOWN, Device::POD_ROUTES)] flags: u32,
    #[values(OTHER, NO_UPLINK)] uplink: u32,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.device(|device| {
        device.bridge = OTHER;
        device.bridge_mac = MAC_BRIDGE;
        device.uplink = uplink;
    });
    let syn = Packet {
        mac_dst: MAC_BRIDGE,
        ..Packet::syn(cast.outsider(), cast.vip())
    };
    datapath.run(Hook::Ingress, &syn);
    for port_of_it in [true, false] {
        if !port_of_it {
            datapath.device(|device| device.flags = flags);
        }
        for reply in [
            Packet::syn_ack(backend, cast.outsider()),
            Packet::data(backend, cast.outsider()),
            Packet::data(backend, cast.outsider()).with_fragment(3, 0, true),
        ] {
            let ran = datapath.run(Hook::Egress, &reply);
            ran.passed_as(&reply.clone().from(cast.vip()));
            assert_eq!(ran.counted.get("reply_redirected"), None);
        }
    }
}
