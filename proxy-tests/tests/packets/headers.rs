//! Whatever stands between the link layer and the ports.

use proxy_common::counter::Counter;
use proxy_tests::{
    Family,
    packet::{
        Cast, Datapath, Extension, Hook, MAC_BRIDGE, MAC_OTHER, MAC_PEER, Packet, ServicePort,
        Verdict,
    },
};
use rstest::rstest;

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// Translates `change`d packets of both protocols in both directions.
fn assert_translated(family: Family, change: impl Fn(Packet) -> Packet) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let pairs = [
        (
            Packet::syn(cast.pod(), cast.vip()),
            Packet::syn_ack(backend, cast.pod()),
        ),
        (
            Packet::data(cast.pod(), cast.vip()),
            Packet::data(backend, cast.pod()),
        ),
        (
            Packet::udp(cast.pod(), cast.vip()),
            Packet::udp(backend, cast.pod()),
        ),
    ];
    for (request, reply) in pairs {
        let (request, reply) = (change(request), change(reply));
        datapath
            .run(Hook::Ingress, &request)
            .passed_as(&request.clone().to(backend));
        datapath
            .run(Hook::Egress, &reply)
            .passed_as(&reply.clone().from(cast.vip()));
    }
}

#[rstest]
#[case::one(&[VLAN])]
#[case::two(&[QINQ, VLAN])]
#[case::two_of_a_kind(&[VLAN, VLAN])]
fn vlan_tags_stay(#[values(Family::V4, Family::V6)] family: Family, #[case] tags: &[u16]) {
    assert_translated(family, |packet| Packet {
        tags: tags.to_vec(),
        ..packet
    });
}

#[rstest]
#[case::router_alert(vec![0x94, 4, 0, 0])]
#[case::all_there_can_be(vec![1; 40])]
fn ipv4_options_stay(#[case] options: Vec<u8>) {
    assert_translated(Family::V4, |packet| Packet {
        options: options.clone(),
        ..packet
    });
}

#[rstest]
#[case::hop_by_hop(&[Extension::HopByHop])]
#[case::routing(&[Extension::Routing])]
#[case::destination(&[Extension::Destination])]
#[case::many(&[
    Extension::HopByHop,
    Extension::Destination,
    Extension::Routing,
    Extension::Destination,
])]
fn ipv6_extension_headers_stay(#[case] extensions: &[Extension]) {
    assert_translated(Family::V6, |packet| Packet {
        extensions: extensions.to_vec(),
        ..packet
    });
}

/// However long they are, as netfilter does.
#[rstest]
#[case::one(&[Extension::Options(600)])]
#[case::many(&[Extension::HopByHop, Extension::Options(248), Extension::Options(1024)])]
fn long_ipv6_extension_headers_stay(#[case] extensions: &[Extension]) {
    assert_translated(Family::V6, |packet| Packet {
        extensions: extensions.to_vec(),
        ..packet
    });
}

/// Offset 0 and no more to come: an ordinary packet (RFC 6946).
#[rstest]
fn atomic_fragments_are_ordinary_packets(#[values(Family::V4, Family::V6)] family: Family) {
    assert_translated(family, |packet| packet.with_fragment(77, 0, false));
}

/// The padding of short frames is no part of the packet.
#[rstest]
fn padding_stays(#[values(Family::V4, Family::V6)] family: Family) {
    assert_translated(family, |packet| Packet {
        padding: 6,
        ..packet
    });
}

/// A datagram whose sender left out the checksum gets none.
#[rstest]
fn zero_udp_checksums_stay_zero(#[values(Family::V4, Family::V6)] family: Family) {
    use proxy_tests::packet::Body;
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let unchecked = |packet| Packet {
        body: Body::UdpUnchecked,
        ..packet
    };
    let request = unchecked(Packet::udp(cast.pod(), cast.vip()));
    datapath
        .run(Hook::Ingress, &request)
        .passed_as(&request.clone().to(backend));
    let reply = unchecked(Packet::udp(backend, cast.pod()));
    datapath
        .run(Hook::Egress, &reply)
        .passed_as(&reply.clone().from(cast.vip()));
}

/// A checksum that comes out as zero is sent as all ones, or it would mean
/// "none". Over all values of a payload word some do.
#[rstest]
fn udp_checksums_never_become_zero(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    // The payload that makes the sum over the translated packet all ones.
    let led = Packet::udp(cast.pod(), backend).with_payload(vec![0, 0]);
    let bytes = led.bytes();
    let at = bytes.len() - 4;
    let payload = bytes[at..at + 2].to_vec();
    let led = led.with_payload(payload);
    assert_eq!(led.bytes()[at..at + 2], [0xff, 0xff]);
    let ran = datapath.run(Hook::Ingress, &led.clone().to(cast.vip()));
    ran.passed_as(&led);
}

/// A frame that is only overheard or bridged through is not ours (E12): also
/// when the flow exists.
#[rstest]
fn frames_for_other_hosts_pass_untouched(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(3)));
    let foreign = Packet {
        mac_dst: MAC_OTHER,
        ..Packet::syn(cast.pod(), cast.vip())
    };
    datapath
        .run(Hook::Ingress, &foreign)
        .left_alone(&foreign.bytes());
    assert_eq!(datapath.flows(family), []);
    datapath.run(Hook::Ingress, &Packet::syn(cast.pod(), cast.vip()));
    datapath
        .run(Hook::Ingress, &foreign)
        .left_alone(&foreign.bytes());
}

/// On a bridge's port, frames for the bridge's MAC address are ours, and no
/// others.
#[rstest]
fn a_bridge_port_takes_frames_for_the_bridge(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.device(|device| {
        device.bridge = 4242;
        device.bridge_mac = MAC_BRIDGE;
    });
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    let to = |mac_dst| Packet {
        mac_dst,
        ..Packet::syn(cast.pod(), cast.vip())
    };
    let foreign = to(MAC_OTHER);
    datapath
        .run(Hook::Ingress, &foreign)
        .left_alone(&foreign.bytes());
    for _ in 0..2 {
        let ours = to(MAC_BRIDGE);
        datapath
            .run(Hook::Ingress, &ours)
            .passed_as(&ours.clone().to(backend));
    }
}

/// Devices without link-layer header have programs of their own (E24).
#[rstest]
fn packets_without_ethernet_header_are_translated(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    // A test run takes the bytes where an Ethernet header would have its type
    // for the protocol, so the backend's address must spell it.
    let (backend, cast) = match family {
        Family::V4 => ("8.0.0.9:8080", Cast::of(family)),
        Family::V6 => ("[fd00:0:86dd::9]:8080", Cast::of(family)),
    };
    let backend = backend.parse().expect("an address");
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &Packet::syn(cast.pod(), cast.vip()));
    let reply = Packet {
        layer3: true,
        ..Packet::syn_ack(backend, cast.pod())
    };
    let ran = datapath.run(Hook::EgressLayer3, &reply);
    ran.passed_as(&reply.clone().from(cast.vip()));
    let fragment = reply.with_fragment(9, 0, false);
    let ran = datapath.run(Hook::EgressLayer3, &fragment);
    ran.passed_as(&fragment.clone().from(cast.vip()));
}

/// A forwarded packet to a frontend that no ingress program saw (E23). A frame
/// that this host only bridges is somebody else's (E12), here and on a device
/// below, where nothing tells any more what the first hook knew.
#[rstest]
fn untranslated_packets_do_not_leave(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(1)));
    datapath.device(|device| {
        device.mac = MAC_PEER;
        device.bridge_mac = MAC_BRIDGE;
    });
    let from = |mac_src| Packet {
        mac_src,
        ..Packet::syn(cast.pod(), cast.vip())
    };
    for own in [MAC_PEER, MAC_BRIDGE] {
        let ran = datapath.run(Hook::Egress, &from(own));
        assert_eq!(ran.verdict, Verdict::Drop);
        ran.counted(&[Counter::Untranslated]);
    }
    let bridged = from(MAC_OTHER);
    let ran = datapath.run(Hook::Egress, &bridged);
    ran.left_alone(&bridged.bytes());
}
