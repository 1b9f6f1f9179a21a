//! A flow table that is too small for what comes.

use proxy_agent::{dataplane::load::Sizes, node::settings};
use proxy_common::{config::Config, counter::Counter, flow::ticks_from_seconds};
use proxy_tests::{
    Family,
    packet::{Body, Cast, Datapath, Hook, Packet, ServicePort, Verdict},
};
use rstest::rstest;

const SIZE: u16 = 512;

fn small(cast: Cast) -> Datapath {
    let mut datapath = Datapath::with_sizes(Sizes {
        services: 16,
        endpoints: 64,
        flows: SIZE.into(),
        ..Sizes::DEFAULT
    });
    datapath.serve(&ServicePort::tcp(cast.vip(), &cast.endpoints(3)));
    datapath.serve(&ServicePort::udp(cast.vip(), &cast.endpoints(3)));
    datapath
}

/// Opens ten times as many connections as there is room for.
fn flood(datapath: &Datapath, cast: Cast) -> usize {
    (0..SIZE * 10)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let client = cast.outsider_with(high, 1024 + u16::from(low));
            let syn = Packet::syn(client, cast.vip()).bytes();
            datapath.run_uncounted(Hook::Ingress, &syn).0
        })
        .filter(|verdict| *verdict != Verdict::Next)
        .count()
}

/// New flows are refused; those that carry traffic live on.
#[rstest]
fn a_flood_takes_no_open_flow(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = small(cast);
    let clients: Vec<_> = (0..100).map(|n| cast.pod_with(1, 50_000 + n)).collect();
    let mut backends = Vec::new();
    for client in &clients {
        datapath.run(Hook::Ingress, &Packet::syn(*client, cast.vip()));
        let backend = datapath.flows_of(*client)[0].backend;
        datapath.run(Hook::Egress, &Packet::syn_ack(backend, *client));
        datapath.run(Hook::Ingress, &Packet::data(*client, cast.vip()));
        datapath.run(Hook::Egress, &Packet::data(backend, *client));
        backends.push(backend);
    }
    let refused = flood(&datapath, cast);
    let room = usize::from(SIZE) - clients.len();
    assert_eq!(refused, usize::from(SIZE) * 10 - room);

    // Under pressure half-open flows go after two ticks, and the flood again
    // takes their room and no more.
    datapath.configure(|config| config.flags |= Config::PRESSED_V4 | Config::PRESSED_V6);
    datapath.age_all(family, 3);
    let swept = datapath.sweep()[usize::from(family == Family::V6)];
    assert_eq!((swept.flows, swept.expired), (100, u32::from(SIZE) - 100));
    flood(&datapath, cast);
    for (client, backend) in clients.iter().zip(backends) {
        let data = Packet::data(*client, cast.vip());
        datapath
            .run(Hook::Ingress, &data)
            .passed_as(&data.clone().to(backend));
        let reply = Packet::data(backend, *client);
        datapath
            .run(Hook::Egress, &reply)
            .passed_as(&reply.clone().from(cast.vip()));
    }
}

/// The client is told, and knows that it is not the Service's port.
#[rstest]
fn refused_flows_are_answered_and_counted(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let datapath = small(cast);
    flood(&datapath, cast);
    // The limit of refusals is one of time.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let syn = Packet::syn(cast.pod(), cast.vip());
    let ran = datapath.run(Hook::Ingress, &syn);
    let mut reset = Packet::rst(cast.vip(), cast.pod()).answering(&syn);
    reset.body = Body::Tcp {
        flags: 4 | 16,
        seq: 0,
        ack: 0x1234_5679,
    };
    ran.answered_by(&reset);
    ran.counted(&[Counter::FlowTableFull]);
    let datagram = Packet::udp(cast.pod(), cast.vip());
    let ran = datapath.run(Hook::Ingress, &datagram);
    let error = Packet::prohibited(cast.vip().ip(), &datagram, 8);
    ran.answered_by(&error.answering(&datagram));
    ran.counted(&[Counter::FlowTableFull]);
}

/// Without pressure a flow lives as long as its state says.
#[rstest]
#[case::half_open(&[], 60)]
#[case::established(&["syn-ack", "data", "reply"], 1000)]
#[case::closed(&["syn-ack", "data", "reply", "fin", "reply-fin"], 60)]
#[case::reset(&["syn-ack", "data", "reply", "reset"], 60)]
fn idle_connections_expire_by_their_state(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] packets: &[&str],
    #[case] timeout: u32,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, frontend, backend) = (cast.pod(), cast.vip(), cast.endpoint(1));
    datapath.serve(&ServicePort::tcp(frontend, &[backend]));
    datapath.run(Hook::Ingress, &Packet::syn(client, frontend));
    for packet in packets {
        let (hook, packet) = match *packet {
            "syn-ack" => (Hook::Egress, Packet::syn_ack(backend, client)),
            "data" => (Hook::Ingress, Packet::data(client, frontend)),
            "reply" => (Hook::Egress, Packet::data(backend, client)),
            "fin" => (Hook::Ingress, Packet::fin(client, frontend)),
            "reply-fin" => (Hook::Egress, Packet::fin(backend, client)),
            _ => (Hook::Egress, Packet::rst(backend, client)),
        };
        datapath.run(hook, &packet);
    }
    // A tick may pass while the test runs.
    datapath.age(client, timeout - 2);
    datapath.sweep();
    assert_eq!(datapath.flows_of(client).len(), 1);
    datapath.age(client, 3);
    datapath.sweep();
    assert_eq!(datapath.flows_of(client), []);
}

/// The idle times are those that the agent sets, in seconds (S82, S84a).
#[rstest]
#[case::established(true, true, 24 * 3600)]
#[case::half_open(true, false, 60)]
#[case::answered(false, true, 120)]
#[case::unanswered(false, false, 30)]
fn idle_times_are_the_agents(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] tcp: bool,
    #[case] answered: bool,
    #[case] seconds: u32,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.configure(|config| config.timeouts = settings::timeouts());
    let (client, frontend, backend) = (cast.pod(), cast.vip(), cast.endpoint(1));
    let (port, first, next): (_, Packet, fn(_, _) -> _) = if tcp {
        let port = ServicePort::tcp(frontend, &[backend]);
        (port, Packet::syn(client, frontend), Packet::data)
    } else {
        let port = ServicePort::udp(frontend, &[backend]);
        (port, Packet::udp(client, frontend), Packet::udp)
    };
    datapath.serve(&port);
    datapath.run(Hook::Ingress, &first);
    if answered {
        for _ in 0..2 {
            datapath.run(Hook::Egress, &next(backend, client));
            datapath.run(Hook::Ingress, &next(client, frontend));
        }
    }
    // A tick may pass while the test runs.
    datapath.age(client, ticks_from_seconds(seconds) - 2);
    datapath.sweep();
    assert_eq!(datapath.flows_of(client).len(), 1);
    datapath.age(client, 3);
    datapath.sweep();
    assert_eq!(datapath.flows_of(client), []);
}
