//! Answers in the place of a Service that cannot.

use std::{
    net::{IpAddr, SocketAddr},
    thread::sleep,
    time::{Duration, Instant},
};

use proxy_common::{counter::Counter, net::Protocol};
use proxy_tests::{
    Family,
    packet::{Body, Cast, Datapath, Extension, Hook, MAC_OTHER, Packet, ServicePort, Verdict},
};
use rstest::rstest;

/// The reset that a closed port would send to `refused`.
fn reset(refused: &Packet) -> Packet {
    let Body::Tcp { flags, seq, ack } = refused.body else {
        panic!("a TCP segment");
    };
    let mut reset = Packet::rst(refused.dst, refused.src).answering(refused);
    let length = u32::try_from(refused.payload.len()).expect("short");
    reset.body = if flags & 16 == 0 {
        let control = u32::from(flags & 2 != 0) + u32::from(flags & 1 != 0);
        Body::Tcp {
            flags: 4 | 16,
            seq: 0,
            ack: seq + length + control,
        }
    } else {
        Body::Tcp {
            flags: 4,
            seq: ack,
            ack: 0,
        }
    };
    reset
}

/// RFC 9293: sequence and acknowledgement depend on what is refused.
#[rstest]
#[case::a_syn(|src, dst| Packet::syn(src, dst))]
#[case::a_syn_with_data(|src, dst| Packet::syn(src, dst).with_payload(vec![7; 100]))]
#[case::a_syn_in_a_padded_frame(|src, dst| Packet { padding: 6, ..Packet::syn(src, dst) })]
#[case::data(Packet::data)]
#[case::a_fin(Packet::fin)]
#[case::a_fin_without_ack(|src, dst| Packet::tcp(src, dst, 1))]
fn tcp_is_refused_by_a_reset(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] refused: fn(SocketAddr, SocketAddr) -> Packet,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[]));
    let refused = refused(cast.pod(), cast.vip());
    let ran = datapath.run(Hook::Ingress, &refused);
    ran.answered_by(&reset(&refused));
    ran.counted(&[Counter::NoEndpoint]);
    assert_eq!(datapath.flows(family), []);
}

/// The quote is what the client sent, to the frontend.
#[rstest]
fn udp_is_refused_by_port_unreachable(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(0, 1, 23, 1400)] length: usize,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::udp(cast.vip(), &[]));
    let refused = Packet::udp(cast.pod(), cast.vip()).with_payload(vec![0x5a; length]);
    let ran = datapath.run(Hook::Ingress, &refused);
    let error = Packet::port_unreachable(cast.vip().ip(), &refused, 8);
    ran.answered_by(&error.answering(&refused));
    ran.counted(&[Counter::NoEndpoint]);
}

/// Tags stay where they were.
#[rstest]
fn frames_with_vlan_tags_are_refused(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(vec![0x8100], vec![0x88a8, 0x8100])] tags: Vec<u16>,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[]));
    datapath.serve(&ServicePort::udp(cast.vip(), &[]));
    let tagged = |packet| Packet {
        tags: tags.clone(),
        ..packet
    };
    let syn = tagged(Packet::syn(cast.pod(), cast.vip()));
    let ran = datapath.run(Hook::Ingress, &syn);
    ran.answered_by(&reset(&syn));
    let udp = tagged(Packet::udp(cast.pod(), cast.vip()));
    let ran = datapath.run(Hook::Ingress, &udp);
    let error = Packet::port_unreachable(cast.vip().ip(), &udp, 8);
    ran.answered_by(&error.answering(&udp));
}

/// IPv4 options and IPv6 extension headers are part of the quote.
#[rstest]
fn long_headers_are_quoted(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::udp(cast.vip(), &[]));
    let refused = Packet {
        options: vec![1; if family == Family::V4 { 40 } else { 0 }],
        extensions: match family {
            Family::V4 => Vec::new(),
            Family::V6 => vec![Extension::HopByHop, Extension::Destination],
        },
        ..Packet::udp(cast.pod(), cast.vip())
    };
    let ran = datapath.run(Hook::Ingress, &refused);
    let error = Packet::port_unreachable(cast.vip().ip(), &refused, 8);
    ran.answered_by(&error.answering(&refused));
}

/// Of a short packet no more is quoted than there is, in whole words.
#[rstest]
fn padding_is_not_quoted(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(0, 3, 4, 7, 9)] length: usize,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::udp(cast.vip(), &[]));
    let refused = Packet {
        padding: 20,
        ..Packet::other(cast.pod(), cast.vip(), 47).with_payload(vec![0x5a; length])
    };
    let ran = datapath.run(Hook::Ingress, &refused);
    let quoted = length.min(8) / 4 * 4;
    let error = Packet::port_unreachable(cast.vip().ip(), &refused, quoted);
    ran.answered_by(&error.answering(&refused));
}

/// A port of a frontend's address that no Service has.
#[rstest]
fn other_ports_of_the_address_are_refused(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(1)));
    let other = cast.vip_with(10, 81);
    let syn = Packet::syn(cast.pod(), other);
    let ran = datapath.run(Hook::Ingress, &syn);
    ran.answered_by(&reset(&syn));
    ran.counted(&[Counter::UnknownPort]);
    let datagrams = [
        Packet::udp(cast.pod(), other),
        // The port has a Service, but of the other protocol.
        Packet::udp(cast.pod(), cast.vip()),
    ];
    for datagram in datagrams {
        let ran = datapath.run(Hook::Ingress, &datagram);
        let error = Packet::port_unreachable(cast.vip().ip(), &datagram, 8);
        ran.answered_by(&error.answering(&datagram));
        ran.counted(&[Counter::UnknownPort]);
    }
}

/// Packets that must never be answered are dropped silently.
#[rstest]
#[case::a_reset(|cast: Cast| Packet::rst(cast.pod(), cast.vip()))]
#[case::an_echo_reply(|cast: Cast| {
    let kind = if cast.family == Family::V4 { 0 } else { 129 };
    let mut reply = Packet::echo(cast.pod().ip(), cast.vip().ip());
    reply.body = Body::Icmp { kind, code: 0, rest: 7 };
    reply
})]
fn some_packets_are_dropped_without_answer(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] packet: fn(Cast) -> Packet,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[]));
    let ran = datapath.run(Hook::Ingress, &packet(cast));
    assert_eq!(ran.verdict, Verdict::Drop, "{ran:?}");
}

/// ICMP errors about unknown flows, and frames to many or to others, are none
/// of our business.
#[rstest]
#[case::an_icmp_error(|cast: Cast| {
    Packet::port_unreachable(cast.pod().ip(), &Packet::udp(cast.vip(), cast.pod()), 8)
})]
#[case::a_broadcast_frame(|cast: Cast| {
    Packet { mac_dst: [0xff; 6], ..Packet::syn(cast.pod(), cast.vip()) }
})]
#[case::a_multicast_frame(|cast: Cast| {
    Packet { mac_dst: [0x33, 0x33, 0, 0, 0, 1], ..Packet::udp(cast.pod(), cast.vip()) }
})]
#[case::a_frame_for_another_host(|cast: Cast| {
    Packet { mac_dst: MAC_OTHER, ..Packet::syn(cast.pod(), cast.vip()) }
})]
fn some_packets_are_not_ours_to_refuse(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] packet: fn(Cast) -> Packet,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[]));
    datapath.serve(&ServicePort::udp(cast.vip(), &[]));
    let packet = packet(cast);
    datapath
        .run(Hook::Ingress, &packet)
        .left_alone(&packet.bytes());
}

/// Sources that are no single host's.
fn no_single_host(cast: Cast) -> Vec<IpAddr> {
    let own = cast.vip().ip();
    let others: &[&str] = match cast.family {
        Family::V4 => &[
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ],
        Family::V6 => &["::", "::1", "ff02::1", "ff0e::1", "::ffff:10.244.1.1"],
    };
    let others = others.iter().map(|ip| ip.parse().expect("an address"));
    std::iter::once(own).chain(others).collect()
}

/// An answer to many, to nobody or to oneself does harm (RFC 1122 section
/// 3.2.2, RFC 4443 section 2.4). What is next to such sources is answered.
#[rstest]
fn only_single_hosts_are_answered(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[]));
    let packets = |ip| {
        let client = SocketAddr::new(ip, 40_000);
        [
            (Packet::syn(client, cast.vip()), Counter::NoEndpoint),
            (Packet::udp(client, cast.vip()), Counter::UnknownPort),
            (
                Packet::echo(ip, cast.vip().ip()),
                Counter::RefusalUnanswerable,
            ),
        ]
    };
    for ip in no_single_host(cast) {
        for (packet, reason) in packets(ip) {
            let ran = datapath.run(hook, &packet);
            ran.dropped_for(Counter::RefusalUnanswerable);
            assert_eq!(ran.counted.get(reason.label()), Some(&1), "{ran:?}");
        }
    }
    let neighbours: &[&str] = match family {
        Family::V4 => &["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255"],
        Family::V6 => &["::2", "::fffe:10.244.1.1", "::1:0:1", "fe80::1"],
    };
    for ip in neighbours {
        for (packet, _) in packets(ip.parse().expect("an address")) {
            let ran = datapath.run(hook, &packet);
            assert_eq!(ran.verdict, Verdict::Redirect, "{ip}: {ran:?}");
        }
    }
}

/// The same of frames whose source is no single station's.
#[rstest]
fn only_single_stations_are_answered(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values([0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1])] mac_src: [u8; 6],
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[]));
    let packets = [
        Packet::syn(cast.pod(), cast.vip()),
        Packet::udp(cast.pod(), cast.vip()),
        Packet::echo(cast.pod().ip(), cast.vip().ip()),
    ];
    for packet in packets {
        let packet = Packet { mac_src, ..packet };
        datapath
            .run(Hook::Ingress, &packet)
            .dropped_for(Counter::RefusalUnanswerable);
    }
}

/// internalTrafficPolicy: Local without an endpoint here: no news for the
/// client, it may try another node.
#[rstest]
fn local_policy_without_local_endpoint_drops(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Protocol::TCP, Protocol::UDP)] protocol: Protocol,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort {
        elsewhere: cast.endpoints(2),
        local: true,
        ..ServicePort::new(protocol, cast.vip(), &[])
    });
    let packet = match protocol {
        Protocol::TCP => Packet::syn(cast.pod(), cast.vip()),
        _ => Packet::udp(cast.pod(), cast.vip()),
    };
    datapath
        .run(Hook::Ingress, &packet)
        .dropped_for(Counter::NoLocalEndpoint);
}

/// A flood of refused packets is not answered by a flood: after a burst they are
/// dropped and counted, and a moment later answered again.
#[rstest]
fn answers_are_limited(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Protocol::TCP, Protocol::UDP)] protocol: Protocol,
) {
    const BURST: usize = 64;
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::new(protocol, cast.vip(), &[]));
    let refused = match protocol {
        Protocol::TCP => Packet::syn(cast.pod(), cast.vip()),
        _ => Packet::udp(cast.pod(), cast.vip()),
    };
    let bytes = refused.bytes();
    stay_on_this_cpu();
    let burst = || {
        let verdicts = (0..100 * BURST).map(|_| datapath.run_uncounted(Hook::Ingress, &bytes).0);
        let answered = verdicts.take_while(|verdict| *verdict == Verdict::Redirect);
        answered.count()
    };
    // The limit is one of time, and its clock ticks slowly.
    let tick = || sleep(Duration::from_millis(20));
    tick();
    let answered = burst();
    assert!((BURST..100 * BURST).contains(&answered), "{answered}");
    // The next tick may come between a burst and the run after it.
    let limited = (0..100)
        .map(|_| {
            burst();
            datapath.run(Hook::Ingress, &refused)
        })
        .find(|ran| ran.verdict == Verdict::Drop)
        .expect("a drop in one of many ticks");
    limited.counted(&[Counter::NoEndpoint, Counter::RefusalLimited]);
    tick();
    let ran = datapath.run(Hook::Ingress, &refused);
    assert_eq!(ran.verdict, Verdict::Redirect, "{ran:?}");
}

/// A flood of one client does not use up the answers of the others.
#[rstest]
fn one_clients_flood_leaves_answers_for_others(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] pings: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::tcp(cast.vip(), &[]));
    let of = |index| {
        let client = cast.pod_with(index, 40_000);
        if pings {
            Packet::echo(client.ip(), cast.vip().ip())
        } else {
            Packet::syn(client, cast.vip())
        }
        .bytes()
    };
    let (flood, other) = (of(1), of(2));
    stay_on_this_cpu();
    let mut answered = 0;
    let until = Instant::now() + Duration::from_millis(100);
    while Instant::now() < until {
        datapath.run_uncounted(Hook::Ingress, &flood);
    }
    for _ in 0..200 {
        for _ in 0..100 {
            datapath.run_uncounted(Hook::Ingress, &flood);
        }
        let (verdict, _) = datapath.run_uncounted(Hook::Ingress, &other);
        answered += usize::from(verdict == Verdict::Redirect);
    }
    // A flood that other work on this CPU interrupts begins anew with a burst.
    assert!(answered > 150, "{answered} of 200");
}

/// The limit is one for each CPU.
fn stay_on_this_cpu() {
    let cpu = nix::sched::sched_getcpu().expect("a CPU");
    let mut only = nix::sched::CpuSet::new();
    only.set(cpu).expect("a CPU of this machine");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).expect("an own thread");
}
