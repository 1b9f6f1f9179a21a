//! Packets whose transport header cannot be translated: what belongs to a
//! Service is dropped, and what does not is left alone.

use std::net::SocketAddr;

use proxy_common::{counter::Counter, local_addr::LocalAddr};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Extension, Frontend, Hook, Lease, MAC_PEER, Packet, ServicePort},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_080;
const TCP: u8 = 6;
const HOOKS: [Hook; 3] = [Hook::Ingress, Hook::Egress, Hook::HostEgress];

/// A Service with a cluster IP, an external IP and a NodePort.
fn serve(cast: Cast) -> Lease {
    let mut datapath = Datapath::load();
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    datapath.device(|device| device.mac = MAC_PEER);
    let port = ServicePort::tcp(cast.vip(), &cast.endpoints(1))
        .with(Frontend::external_ip(cast.vip_with(11, 80)))
        .with(Frontend::node_port(NODE_PORT));
    datapath.serve(&port);
    datapath
}

/// The first fragment of a SYN that is cut after `length` bytes of its header.
fn cut(src: SocketAddr, dst: SocketAddr, length: usize) -> Packet {
    let whole = Packet::syn(src, dst).ip_bytes();
    let header = whole[whole.len() - 20..][..length].to_vec();
    Packet::other(src, dst, TCP)
        .with_payload(header)
        .with_fragment(9, 0, true)
}

/// The transport checksum is in a later fragment. Bytes behind the packet are
/// not it.
#[rstest]
fn a_divided_tcp_header_is_dropped(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(8, 16)] length: usize,
    #[values(0, 18)] padding: usize,
) {
    let cast = Cast::of(family);
    let datapath = serve(cast);
    let cut = |src, dst| Packet {
        padding,
        ..cut(src, dst, length)
    };
    let node_port = SocketAddr::new(cast.node(), NODE_PORT);
    for hook in HOOKS {
        for destination in [cast.vip(), cast.vip_with(11, 80), node_port] {
            let ran = datapath.run(hook, &cut(cast.pod(), destination));
            ran.dropped_for(Counter::Unreadable);
        }
        let others = [
            cast.stranger(),
            cast.endpoint(1),
            cast.vip_with(11, 81),
            SocketAddr::new(cast.node(), 22),
        ];
        for other in others {
            let packet = cut(cast.pod(), other);
            datapath.run(hook, &packet).left_alone(&packet.bytes());
        }
    }
    assert_eq!(datapath.flows(family), []);
}

/// The same of a backend's reply, wherever it would be translated.
#[rstest]
fn a_divided_tcp_header_of_a_reply_is_dropped(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(8, 16)] length: usize,
) {
    let cast = Cast::of(family);
    let datapath = serve(cast);
    let backend = cast.endpoint(1);
    for client in [cast.pod(), cast.outsider()] {
        let led = datapath.run(Hook::Ingress, &Packet::syn(client, cast.vip()));
        datapath.run_uncounted(Hook::Egress, &led.packet);
        let ran = datapath.run(Hook::Egress, &cut(backend, client, length));
        ran.dropped_for(Counter::Unreadable);
    }
    let masquerade = datapath.flows_of(cast.outsider())[0].masquerade;
    let ran = datapath.run(Hook::Ingress, &cut(backend, masquerade, length));
    ran.dropped_for(Counter::Unreadable);
    let other_port = SocketAddr::new(backend.ip(), 22);
    for (src, dst) in [(other_port, cast.pod()), (other_port, masquerade)] {
        let packet = cut(src, dst, length);
        for hook in HOOKS {
            datapath.run(hook, &packet).left_alone(&packet.bytes());
        }
    }
}

/// Ports that are out of reach: the frontends that the address may stand for. The host
/// has the ports that no Service has of its own addresses.
#[rstest]
#[case::too_many_headers(&[Extension::Destination; 7])]
#[case::another_destination(&[Extension::Segments(1)])]
#[case::another_destination_at_last(&[Extension::HopByHop, Extension::Segments(2)])]
fn headers_out_of_reach_are_dropped(#[case] extensions: &[Extension]) {
    let cast = Cast::of(Family::V6);
    let mut datapath = serve(cast);
    let packets = |dst| {
        [Packet::syn, Packet::udp].map(|kind| Packet {
            extensions: extensions.to_vec(),
            ..kind(cast.pod(), dst)
        })
    };
    for hook in HOOKS {
        for destination in [cast.vip(), cast.vip_with(11, 80)] {
            for packet in packets(destination) {
                let ran = datapath.run(hook, &packet);
                ran.dropped_for(Counter::Unreadable);
            }
        }
        for other in [cast.stranger(), SocketAddr::new(cast.node(), 22)] {
            for packet in packets(other) {
                datapath.run(hook, &packet).left_alone(&packet.bytes());
            }
        }
    }
    datapath.local_addr(cast.vip_with(11, 80).ip(), 0);
    let own = Packet {
        extensions: vec![Extension::Destination; 7],
        ..Packet::syn(cast.pod(), cast.vip_with(11, 81))
    };
    datapath.run(Hook::Ingress, &own).left_alone(&own.bytes());
}
