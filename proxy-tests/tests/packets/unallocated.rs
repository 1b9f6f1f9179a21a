//! Addresses for cluster IPs that no Service has lead nowhere (S47).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::{
    config::{Config, Prefix},
    counter::Counter,
};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Lease, MAC_OTHER, Packet, ServicePort, Verdict, chunk},
};
use rstest::rstest;

/// A Service, and the range that its address is from: the second of two.
fn serve(cast: Cast) -> Lease {
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(1)));
    datapath.configure(|config: &mut Config| {
        config.service_ranges_v4[0] = Prefix {
            addr: Ipv4Addr::new(10, 112, 0, 0).into(),
            mask: Ipv4Addr::new(255, 240, 0, 0).into(),
        };
        config.service_ranges_v4[1] = Prefix {
            addr: Ipv4Addr::new(10, 96, 0, 0).into(),
            mask: Ipv4Addr::new(255, 255, 0, 0).into(),
        };
        config.service_ranges_v6[0] = Prefix {
            addr: Ipv6Addr::new(0xfd00, 0x10, 0x97, 0, 0, 0, 0, 0).into(),
            mask: Ipv6Addr::new(0xffff, 0xffff, 0xffff, 0, 0, 0, 0, 0).into(),
        };
        config.service_ranges_v6[1] = Prefix {
            addr: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0).into(),
            mask: Ipv6Addr::new(0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0, 0).into(),
        };
    });
    datapath
}

/// Packets that open flows.
fn openers(from: SocketAddr, to: SocketAddr) -> [Packet; 5] {
    [
        Packet::syn(from, to),
        Packet::udp(from, to),
        Packet::init(from, to),
        Packet::echo(from.ip(), to.ip()),
        Packet::other(from, to, 47),
    ]
}

/// Forwarded packets at the device they come in by, and those of the host's
/// own processes where they leave.
#[rstest]
fn new_flows_are_dropped(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
) {
    let cast = Cast::of(family);
    let datapath = serve(cast);
    for client in [cast.pod(), cast.outsider()] {
        for packet in openers(client, cast.vip_with(99, 80)) {
            let ran = datapath.run(hook, &packet);
            ran.dropped_for(Counter::Unallocated);
            ran.counted(&[Counter::Unallocated]);
        }
    }
    assert_eq!(datapath.flows(family), []);
}

/// A connection that Tandem did not see opening is none of its business.
#[rstest]
fn open_connections_go_on(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
) {
    let cast = Cast::of(family);
    let datapath = serve(cast);
    let (client, address) = (cast.pod(), cast.vip_with(99, 80));
    for packet in [
        Packet::data(client, address),
        Packet::fin(client, address),
        Packet::rst(client, address),
        Packet::sctp(client, address, chunk::DATA),
        Packet::port_unreachable(client.ip(), &Packet::udp(address, client), 8),
    ] {
        datapath.run(hook, &packet).left_alone(&packet.bytes());
    }
}

/// Addresses beside the ranges, in every word that a mask has, and those of
/// links and groups.
#[rstest]
fn other_addresses_pass(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::Egress, Hook::HostEgress)] hook: Hook,
) {
    let cast = Cast::of(family);
    let datapath = serve(cast);
    let beside: [IpAddr; 4] = match family {
        Family::V4 => [
            "10.97.0.1",
            "10.111.255.255",
            "169.254.20.10",
            "224.0.0.251",
        ],
        Family::V6 => ["fd00:10:96::1:0:0", "fd00:10:98::1", "fe80::1", "ff02::fb"],
    }
    .map(|ip| ip.parse().expect("an address"));
    for ip in beside {
        for packet in openers(cast.pod(), SocketAddr::new(ip, 80)) {
            datapath.run(hook, &packet).left_alone(&packet.bytes());
        }
    }
}

/// The node has such an address itself (as a DNS cache on every node has),
/// bridges frames to one, or sends on what came in by another device.
#[rstest]
fn what_is_not_ours_to_drop_passes(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = serve(cast);
    let (own, elsewhere) = (cast.vip_with(98, 53), cast.vip_with(99, 80));
    datapath.local_addr(own.ip(), 0);
    for packet in openers(cast.pod(), own) {
        for hook in [Hook::Ingress, Hook::HostEgress] {
            datapath.run(hook, &packet).left_alone(&packet.bytes());
        }
    }
    for packet in openers(cast.pod(), elsewhere) {
        let bridged = Packet {
            mac_dst: MAC_OTHER,
            ..packet.clone()
        };
        datapath
            .run(Hook::Ingress, &bridged)
            .left_alone(&bridged.bytes());
        datapath
            .run(Hook::Egress, &packet)
            .left_alone(&packet.bytes());
    }
}

/// Later fragments share their datagram's fate.
#[rstest]
fn fragments_are_dropped(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = serve(cast);
    let datagram = Packet::udp(cast.pod(), cast.vip_with(99, 80)).with_payload(vec![1; 64]);
    datapath
        .run(Hook::Ingress, &datagram.clone().with_fragment(3, 0, true))
        .dropped_for(Counter::Unallocated);
    let later = datapath.run(Hook::Ingress, &datagram.with_fragment(3, 72, false));
    assert_eq!(later.verdict, Verdict::Drop, "{later:?}");
}

/// A Service that is deleted leaves its open connections alone (S79).
#[rstest]
fn a_deleted_service_keeps_its_connections(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = serve(cast);
    let service = ServicePort::tcp(cast.vip_with(20, 80), &cast.endpoints(1));
    let client = cast.pod();
    datapath.serve(&service);
    datapath.run(Hook::Ingress, &Packet::syn(client, service.frontend));
    datapath.unserve(&service);
    let data = Packet::data(client, service.frontend);
    datapath
        .run(Hook::Ingress, &data)
        .passed_as(&data.clone().to(cast.endpoint(1)));
    let syn = Packet::syn(cast.pod_with(1, 40_001), service.frontend);
    datapath
        .run(Hook::Ingress, &syn)
        .dropped_for(Counter::Unallocated);
}
