//! A flow table that is nearly full, and what part of it each client has.

use std::{collections::BTreeSet, net::SocketAddr};

use proxy_agent::{dataplane::load::Sizes, node::settings};
use proxy_common::{counter::Counter, flow::ticks_from_seconds};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort, Verdict},
};
use rstest::rstest;

const SIZE: u16 = 800;
/// The number of flows that clients may have together.
const ROOM: u16 = 700;
/// Ticks that stand for a second: so many that those of the clock, which go on
/// meanwhile, do not matter.
const SECOND: u32 = 10;

fn datapath(cast: Cast) -> Datapath {
    let mut datapath = Datapath::with_sizes(Sizes {
        services: 16,
        endpoints: 64,
        flows: SIZE.into(),
        ..Sizes::DEFAULT
    });
    datapath.configure(|config| {
        config.timeouts = settings::timeouts();
        config.timeouts.pressed = 2 * SECOND;
    });
    datapath.serve(&ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]));
    datapath
}

/// Opens a connection that is answered and used. Returns whether it was admitted.
fn establish(datapath: &Datapath, cast: Cast, client: SocketAddr) -> bool {
    let (frontend, backend) = (cast.vip(), cast.endpoint(1));
    let syn = Packet::syn(client, frontend).bytes();
    if datapath.run_uncounted(Hook::Ingress, &syn).0 != Verdict::Next {
        return false;
    }
    datapath.run_uncounted(Hook::Egress, &Packet::syn_ack(backend, client).bytes());
    use_it(datapath, cast, client);
    true
}

fn use_it(datapath: &Datapath, cast: Cast, client: SocketAddr) {
    let data = Packet::data(client, cast.vip()).bytes();
    let (verdict, _) = datapath.run_uncounted(Hook::Ingress, &data);
    assert_eq!(verdict, Verdict::Next, "{client}");
}

/// Opens up to `count` connections from one address; returns how many there are.
fn establish_many(
    datapath: &Datapath,
    cast: Cast,
    client: impl Fn(u16) -> SocketAddr,
    count: u16,
) -> u16 {
    let opened = (0..count).filter(|n| establish(datapath, cast, client(*n)));
    u16::try_from(opened.count()).expect("few")
}

/// Connections of a client's address that are in the table.
fn held(datapath: &Datapath, client: SocketAddr) -> usize {
    let flows = datapath.flows(Family::of(client.ip()));
    let own = flows.iter().filter(|flow| flow.client.ip() == client.ip());
    own.count()
}

/// Sweeps as when pressure is noticed: at once, to count, and to compare.
fn notice(datapath: &mut Datapath, family: Family) {
    for _ in 0..3 {
        assert!(datapath.sweep_and_tell(family), "it is nearly full");
    }
}

/// A client with all there is opens no more, and is told so. Its idle connections make
/// room for another client, the longest idle first, and those that carry traffic stay.
#[rstest]
fn a_client_that_has_all_leaves_others_room(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    let greedy = |n: u16| cast.pod_with(2, 2000 + n);
    let other = |n: u16| cast.pod_with(3, 2000 + n);
    // Fifty in a second.
    for first in (0..SIZE).step_by(50) {
        datapath.age_all(family, SECOND);
        assert!((first..first + 50).all(|n| establish(&datapath, cast, greedy(n))));
    }
    assert!(
        !establish(&datapath, cast, other(0)),
        "there is no room yet"
    );

    notice(&mut datapath, family);
    assert_eq!(datapath.share(family), u32::from(ROOM));
    let ran = datapath.run(Hook::Ingress, &Packet::syn(greedy(SIZE), cast.vip()));
    assert_eq!(ran.verdict, Verdict::Redirect, "it is told");
    ran.counted(&[Counter::ClientOverShare]);

    // The first fifty carry traffic.
    let busy = 0..50;
    let mut opened = 0;
    for round in 0..10 {
        datapath.age_all(family, SECOND);
        for n in busy.clone() {
            use_it(&datapath, cast, greedy(n));
        }
        datapath.sweep_and_tell(family);
        assert!(!establish(&datapath, cast, greedy(SIZE)), "round {round}");
        for n in 0..10 {
            let client = other(round * 10 + n);
            assert!(establish(&datapath, cast, client), "round {round}");
            opened += 1;
        }
    }
    assert_eq!(held(&datapath, other(0)), opened);
    let flows = datapath.flows(family);
    let own = flows.iter().map(|flow| flow.client);
    let own = own.filter(|client| client.ip() == greedy(0).ip());
    let left: BTreeSet<_> = own.map(|client| client.port() - 2000).collect();
    let share = usize::from(ROOM) - opened;
    assert!((share..=share + 20).contains(&left.len()), "{left:?}");
    assert!(left.is_superset(&busy.collect()), "they carry traffic");
    assert!(left.contains(&(SIZE - 1)), "the longest idle go first");
}

/// Connections of a client that has less than its share outlive those of one that has
/// more, however long they have been idle.
#[rstest]
fn who_has_less_than_its_share_keeps_idle_connections(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    let modest = |n: u16| cast.pod_with(3, 2000 + n);
    let greedy = |n: u16| cast.pod_with(2, 2000 + n);
    establish_many(&datapath, cast, modest, 100);
    datapath.age_all(family, ticks_from_seconds(3600));
    establish_many(&datapath, cast, greedy, SIZE);
    notice(&mut datapath, family);
    let mut seconds = 0;
    while held(&datapath, greedy(0)) > usize::from(ROOM) - 100 {
        datapath.age_all(family, SECOND);
        datapath.sweep_and_tell(family);
        seconds += 1;
        assert!(seconds < 6, "{} left", held(&datapath, greedy(0)));
    }
    assert_eq!(held(&datapath, greedy(0)), usize::from(ROOM) - 100);
    assert_eq!(held(&datapath, modest(0)), 100);
}

/// Several clients that have more than their share each keep the same.
#[rstest]
fn large_clients_get_equal_shares(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    for (host, count) in [(2, 100), (3, 300), (4, 400)] {
        let client = |n: u16| cast.pod_with(host, 2000 + n);
        assert_eq!(establish_many(&datapath, cast, client, count), count);
    }
    notice(&mut datapath, family);
    for _ in 0..5 {
        datapath.age_all(family, SECOND);
        datapath.sweep_and_tell(family);
    }
    let left = [2, 3, 4].map(|host| held(&datapath, cast.pod_with(host, 1)));
    assert_eq!(left, [100, 300, 300]);
}

/// Half-open flows count, too, where a client has many: two that flood leave a third one
/// room.
#[rstest]
fn clients_that_flood_leave_others_room(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    let flood = |datapath: &Datapath, second: u16| {
        for n in 0..SIZE {
            for host in [2, 3] {
                let client = cast.pod_with(host, 1024 + second * SIZE + n);
                let syn = Packet::syn(client, cast.vip()).bytes();
                datapath.run_uncounted(Hook::Ingress, &syn);
            }
        }
    };
    flood(&datapath, 0);
    notice(&mut datapath, family);
    assert_eq!(datapath.share(family), u32::from(ROOM / 2));
    for second in 1..8 {
        datapath.age_all(family, SECOND);
        datapath.sweep_and_tell(family);
        flood(&datapath, second);
        // The first half-open ones have to go.
        if second > 3 {
            let other = |n: u16| cast.pod_with(4, 2000 + second * 10 + n);
            let opened = establish_many(&datapath, cast, other, 10);
            assert_eq!(opened, 10, "second {second}");
        }
    }
}

/// Of hosts outside an IPv4 address is a client, and an IPv6 /64, whose addresses are
/// all one host's.
#[rstest]
fn outside_clients_are_addresses_of_ipv4_and_prefixes_of_ipv6(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    // Ten addresses with eighty connections each.
    for n in 0..SIZE {
        let host = u8::try_from(n % 10).expect("few");
        establish(&datapath, cast, cast.outsider_with(host, 2000 + n / 10));
    }
    notice(&mut datapath, family);
    let share = match family {
        Family::V4 => ROOM / 10,
        Family::V6 => ROOM,
    };
    assert_eq!(datapath.share(family), u32::from(share));
    let another = Packet::syn(cast.outsider_with(99, 2000), cast.vip());
    let ran = datapath.run(Hook::Ingress, &another);
    match family {
        // The table itself is full.
        Family::V4 => ran.counted(&[Counter::FlowTableFull]),
        Family::V6 => ran.counted(&[Counter::ClientOverShare]),
    }
}

/// Shares end once the table is half empty again.
#[rstest]
fn shares_end_with_the_pressure(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = datapath(cast);
    let greedy = |n: u16| cast.pod_with(2, 2000 + n);
    establish_many(&datapath, cast, greedy, SIZE);
    notice(&mut datapath, family);
    assert!(datapath.share(family) != 0);
    datapath.age_all(family, ticks_from_seconds(25 * 3600));
    datapath.sweep_and_tell(family);
    assert!(!datapath.sweep_and_tell(family));
    assert_eq!(datapath.share(family), 0);
    assert_eq!(establish_many(&datapath, cast, greedy, SIZE), SIZE);
}
