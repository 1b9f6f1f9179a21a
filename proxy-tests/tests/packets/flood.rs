//! Floods of first packets that nobody means.

use std::net::SocketAddr;

use proxy_agent::{dataplane::load::Sizes, node::settings};
use proxy_common::{config::Timeouts, flow::ticks_from_seconds, masquerade::PortRange};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort, Verdict},
};
use rstest::rstest;

const SIZE: u32 = 2000;
/// As many masquerade ports.
const PORTS: PortRange = PortRange::new(10_000, 11_999).unwrap();
/// Seconds of the flood, each of which brings a fifth of what the table holds.
const SECONDS: u32 = 50;
/// Ticks that stand for a second of the flood: so many that those of the clock,
/// which go on meanwhile, do not matter.
const SECOND: u32 = 100;

fn datapath(cast: Cast, backends: u8) -> Datapath {
    datapath_with(cast, backends, SIZE, PortRange::UNPRIVILEGED)
}

fn datapath_with(cast: Cast, backends: u8, flows: u32, ports: PortRange) -> Datapath {
    let sizes = Sizes {
        services: 16,
        endpoints: 64,
        flows,
        ..Sizes::DEFAULT
    };
    let mut datapath = Datapath::with_ports(sizes, ports);
    let endpoints = cast.endpoints(backends);
    datapath.serve(&ServicePort::tcp(cast.vip(), &endpoints));
    datapath.serve(&ServicePort::udp(cast.vip(), &endpoints));
    datapath
}

/// Leads a packet of a client through both hooks; returns it if it leaves.
fn lead(datapath: &Datapath, packet: &Packet) -> Option<Vec<u8>> {
    let (verdict, led) = datapath.run_uncounted(Hook::Ingress, &packet.bytes());
    if verdict != Verdict::Next {
        return None;
    }
    let (verdict, sent) = datapath.run_uncounted(Hook::Egress, &led);
    (verdict == Verdict::Next).then_some(sent)
}

/// A connection that was answered and is used. False if it was not opened.
fn establish(datapath: &Datapath, cast: Cast, client: SocketAddr) -> bool {
    if lead(datapath, &Packet::syn(client, cast.vip())).is_none() {
        return false;
    }
    let flow = datapath.flows_of(client)[0];
    let answer = Packet::syn_ack(flow.backend, flow.masquerade).bytes();
    let (_, back) = datapath.run_uncounted(Hook::Ingress, &answer);
    datapath.run_uncounted(Hook::Egress, &back);
    lead(datapath, &Packet::data(client, cast.vip())).is_some()
}

/// Ten times as many SYNs as the tables hold, masqueraded, take nothing from open
/// connections, and others are opened meanwhile.
#[rstest]
fn a_flood_of_outsiders_leaves_room(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(1, 8)] backends: u8,
) {
    let cast = Cast::of(family);
    survive(datapath(cast, backends), cast);
}

/// Ten times as many SYNs as there are masquerade ports towards the only backend take
/// nothing from open connections either, and others find ports meanwhile.
#[rstest]
fn a_flood_of_outsiders_leaves_ports(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    survive(datapath_with(cast, 1, 8 * SIZE, PORTS), cast);
}

/// Floods a Service. Open connections and newcomers are served.
fn survive(mut datapath: Datapath, cast: Cast) {
    let family = cast.family;
    datapath.configure(|config| {
        config.timeouts = Timeouts {
            tcp_established: 1000 * SECOND,
            tcp_opening: 60 * SECOND,
            tcp_closing: 60 * SECOND,
            pressed: 2 * SECOND + SECOND / 2,
            ..config.timeouts
        }
    });
    let open: Vec<_> = (0..100)
        .map(|n| cast.outsider_with(250, 2000 + n))
        .collect();
    for client in &open {
        assert!(establish(&datapath, cast, *client));
    }
    let (mut tried, mut opened) = (0, 0);
    let mut number = 0_u32;
    let mut pressed = false;
    for second in 0..SECONDS {
        for _ in 0..SIZE / 5 {
            let client = flooder(cast, number);
            let _ = lead(&datapath, &Packet::syn(client, cast.vip()));
            number += 1;
        }
        for n in 0..5 {
            let port = 1024 + u16::try_from(second * 5 + n).expect("a port");
            tried += 1;
            opened += u32::from(establish(&datapath, cast, cast.outsider_with(251, port)));
        }
        for client in &open {
            let data = Packet::data(*client, cast.vip());
            assert!(
                lead(&datapath, &data).is_some(),
                "{client}, second {second}"
            );
        }
        datapath.age_all(family, SECOND);
        // Every five seconds, and every second while that helps.
        if pressed || second % 5 == 4 {
            let before = pressed;
            pressed = datapath.sweep_and_tell(family);
            if pressed && !before {
                pressed = datapath.sweep_and_tell(family);
            }
        }
    }
    println!("{family}: {opened} of {tried} opened");
    assert!(opened * 100 >= tried * 95, "{opened} of {tried}");
}

/// A client of the flood: each packet has its own.
fn flooder(cast: Cast, number: u32) -> SocketAddr {
    let [_, _, high, low] = number.to_be_bytes();
    cast.outsider_with(
        high % 200,
        1024 + u16::from(low) + 256 * u16::from(high / 200),
    )
}

/// A table of reply tuples that is nearly full is one that is pressed.
#[rstest]
fn reply_tuples_count_too(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, 1);
    for n in 0..u16::try_from(SIZE / 10 * 9).expect("a port") {
        let client = cast.outsider_with(1, 1024 + n);
        assert!(lead(&datapath, &Packet::udp(client, cast.vip())).is_some());
    }
    assert_eq!(swept(&mut datapath, family), (SIZE / 10 * 9, SIZE / 10 * 9));
    assert!(datapath.sweep_and_tell(family));
    datapath.age_all(family, 4);
    assert_eq!(swept(&mut datapath, family), (0, 0));
}

/// Flows and reply tuples that a sweep leaves.
fn swept(datapath: &mut Datapath, family: Family) -> (u32, u32) {
    let swept = datapath.sweep()[usize::from(family == Family::V6)];
    (swept.flows, swept.reply_tuples)
}

/// Under pressure connections that have long been idle make room, the longest idle
/// first, and those that carry traffic stay.
#[rstest]
fn idle_connections_make_room_the_longest_idle_first(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, 1);
    datapath.configure(|config| config.timeouts = settings::timeouts());
    let (frontend, backend) = (cast.vip(), cast.endpoint(1));
    let quarter = u16::try_from(SIZE / 4).expect("a port");
    let hours = |hours: u32| ticks_from_seconds(hours * 3600);
    // Idle for 23 hours, two hours, seven minutes, and not at all.
    let minutes = ticks_from_seconds(420);
    for (host, later) in (1..).zip([hours(21), hours(2) - minutes, minutes, 0]) {
        for n in 0..quarter {
            let client = cast.pod_with(host, 1024 + n);
            for (hook, packet) in [
                (Hook::Ingress, Packet::syn(client, frontend)),
                (Hook::Egress, Packet::syn_ack(backend, client)),
                (Hook::Ingress, Packet::data(client, frontend)),
            ] {
                datapath.run_uncounted(hook, &packet.bytes());
            }
        }
        // Those of the hosts before grow older with it.
        datapath.age_all(family, later);
    }
    let newcomer = Packet::syn(cast.pod_with(9, 1024), frontend);
    let refused = datapath.run(Hook::Ingress, &newcomer);
    assert_eq!(refused.verdict, Verdict::Redirect, "the table is full");
    assert!(datapath.sweep_and_tell(family));
    // It is not known yet who has more than its share.
    for _ in 0..2 {
        assert_eq!(swept(&mut datapath, family).0, SIZE);
    }
    for left in [3, 2, 1, 1] {
        let (flows, _) = swept(&mut datapath, family);
        assert_eq!(flows, u32::from(quarter) * left);
    }
    let led = newcomer.clone().to(backend);
    datapath.run(Hook::Ingress, &newcomer).passed_as(&led);
}

/// A reply tuple that no flow has is removed, be its flow gone or another one; one
/// that is about to become a flow's is left alone.
#[rstest]
fn reply_tuples_of_nobody_are_removed(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, 1);
    let (backend, node) = (cast.endpoint(1), SocketAddr::new(cast.node(), 9));
    let (client, opening) = (cast.outsider(), cast.outsider_with(2, 7));
    lead(&datapath, &Packet::udp(client, cast.vip()));
    // Its packet has not left by the backend's device yet.
    datapath.run(Hook::Ingress, &Packet::udp(opening, cast.vip()));
    for (port, holder) in [(9, client), (10, cast.outsider_with(3, 7)), (11, opening)] {
        let masquerade = SocketAddr::new(node.ip(), port);
        datapath.plant_reply_tuple(backend, masquerade, holder);
    }
    assert_eq!(datapath.reply_tuples(family), 4);
    datapath.sweep();
    assert_eq!(
        datapath.reply_tuples(family),
        2,
        "the client's and that of the opening"
    );
    datapath.age(opening, 4);
    datapath.sweep();
    assert_eq!(datapath.reply_tuples(family), 1);
    let reply = Packet::udp(backend, datapath.flows_of(client)[0].masquerade);
    let ran = datapath.run(Hook::Ingress, &reply);
    ran.passed_as(&reply.to(client));
}

/// A record of the future is nonsense, and removed.
#[rstest]
fn flows_of_the_future_are_removed(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast, 1);
    lead(&datapath, &Packet::syn(cast.outsider(), cast.vip()));
    datapath.age(cast.outsider(), 1000_u32.wrapping_neg());
    datapath.sweep();
    assert_eq!(datapath.flows(family), []);
    assert_eq!(datapath.reply_tuples(family), 0);
}
