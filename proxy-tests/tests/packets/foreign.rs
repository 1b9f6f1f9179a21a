//! Packets that have nothing to do with Services, and things that are no
//! packets.

use std::net::SocketAddr;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Extension, Hook, Packet, ServicePort, Verdict},
};
use rstest::rstest;

/// The kernel refuses to run frames without a whole IP header.
const SHORTEST: usize = 54;

const HOOKS: [Hook; 5] = [
    Hook::Ingress,
    Hook::Egress,
    Hook::HostEgress,
    Hook::IngressLayer3,
    Hook::EgressLayer3,
];

/// Both families have a frontend and flows, so that all tables have entries.
fn busy() -> impl std::ops::Deref<Target = Datapath> {
    let mut datapath = Datapath::load();
    for family in Family::BOTH {
        let cast = Cast::of(family);
        datapath.serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(3)));
        datapath.serve(&ServicePort::udp(cast.vip(), &cast.endpoints(3)));
        for client in [cast.pod(), cast.outsider()] {
            for packet in [
                Packet::syn(client, cast.vip()),
                Packet::udp(client, cast.vip()),
            ] {
                let (_, led) = datapath.run_uncounted(Hook::Ingress, &packet.bytes());
                datapath.run_uncounted(Hook::Egress, &led);
            }
        }
    }
    datapath
}

fn check<S: Strategy>(
    cases: u32,
    strategy: &S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(strategy, test)
        .expect("the property holds");
}

/// Any valid packet between addresses that are not ours.
fn foreign(family: Family) -> impl Strategy<Value = Packet> {
    let cast = Cast::of(family);
    let ends = prop::sample::select(vec![
        cast.stranger(),
        cast.pod(),
        cast.pod_with(9, 1),
        cast.outsider(),
        SocketAddr::new(cast.endpoint(1).ip(), 22),
        SocketAddr::new(cast.node(), 10_250),
        SocketAddr::new(cast.router(), 179),
    ]);
    let kind = (0..6_u8, any::<u8>());
    let extensions = prop::sample::select(vec![
        vec![],
        vec![Extension::HopByHop],
        vec![Extension::Destination, Extension::Routing],
    ]);
    let tags = prop::sample::select(vec![vec![], vec![0x8100], vec![0x88a8, 0x8100]]);
    let fragment = prop::option::of((any::<u16>(), 0..100_u16, any::<bool>()));
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    (
        ends.clone(),
        ends,
        kind,
        extensions,
        tags,
        fragment,
        payload,
    )
        .prop_map(
            |(src, dst, (kind, byte), extensions, tags, fragment, payload)| {
                let packet = match kind {
                    0 => Packet::tcp(src, dst, byte),
                    1 => Packet::udp(src, dst),
                    2 => Packet::echo(src.ip(), dst.ip()),
                    3 => Packet::too_big(src.ip(), &Packet::data(dst, src), 8),
                    4 => Packet::other(src, dst, 132),
                    _ => Packet::other(src, dst, byte | 0x80),
                };
                let packet = if kind == 3 {
                    packet
                } else {
                    packet.with_payload(payload)
                };
                let packet = match fragment {
                    Some((id, offset, more)) => packet.with_fragment(id, offset * 8, more),
                    None => packet,
                };
                Packet {
                    extensions,
                    tags,
                    ..packet
                }
            },
        )
}

#[rstest]
fn packets_of_others_pass_byte_for_byte(#[values(Family::V4, Family::V6)] family: Family) {
    let datapath = busy();
    check(2000, &foreign(family), |packet| {
        let bytes = packet.bytes();
        for hook in [Hook::Ingress, Hook::Egress, Hook::HostEgress] {
            let (verdict, out) = datapath.run_uncounted(hook, &bytes);
            prop_assert_eq!(verdict, Verdict::Next, "{:?}", hook);
            prop_assert_eq!(&out, &bytes);
        }
        Ok(())
    });
}

/// Noise, some of it behind an ethertype that makes us look.
#[rstest]
fn noise_passes_byte_for_byte(
    #[values(None, Some(0x0800), Some(0x86dd), Some(0x8100))] ethertype: Option<u16>,
) {
    let datapath = busy();
    check(
        2000,
        &prop::collection::vec(any::<u8>(), SHORTEST..300),
        |mut bytes| {
            if let Some(ethertype) = ethertype {
                bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            }
            for hook in HOOKS {
                let (verdict, out) = datapath.run_uncounted(hook, &bytes);
                prop_assert_eq!(verdict, Verdict::Next, "{:?}", hook);
                prop_assert_eq!(&out, &bytes);
            }
            Ok(())
        },
    );
}

/// Packets of ours, cut off or with bytes changed: whatever becomes of them,
/// nothing is returned that the kernel does not know, and what passes is as
/// long as it was.
#[rstest]
fn damaged_packets_pass_or_are_dropped(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = busy();
    let masquerade = datapath.flows_of(cast.outsider())[0].masquerade;
    let packets = vec![
        Packet::syn(cast.pod(), cast.vip()),
        Packet::udp(cast.pod(), cast.vip()),
        Packet::data(cast.endpoint(1), cast.pod()),
        Packet::data(cast.endpoint(1), masquerade),
        Packet::udp(cast.outsider(), cast.endpoint(1)),
        Packet::udp(cast.pod(), cast.vip()).with_fragment(1, 0, true),
        Packet::udp(cast.pod(), cast.vip()).with_fragment(1, 800, true),
        Packet::too_big(
            cast.router(),
            &Packet::data(cast.pod(), cast.endpoint(1)),
            20,
        ),
        Packet::too_big(cast.router(), &Packet::data(cast.vip(), cast.pod()), 20),
        Packet::redirect(cast.router(), &Packet::data(cast.pod(), cast.endpoint(1))),
    ];
    let shortest = if family == Family::V4 { 34 } else { SHORTEST };
    let changes = prop::collection::vec((14..120_usize, any::<u8>()), 0..3);
    let strategy = (prop::sample::select(packets), shortest..200, changes);
    check(3000, &strategy, |(packet, length, changes)| {
        let mut bytes = packet.bytes();
        bytes.truncate(length);
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        for hook in HOOKS {
            let (verdict, out) = datapath.run_uncounted(hook, &bytes);
            prop_assert!(!matches!(verdict, Verdict::Unexpected(_)), "{:?}", verdict);
            if verdict == Verdict::Next {
                prop_assert_eq!(out.len(), bytes.len());
            }
        }
        Ok(())
    });
}
