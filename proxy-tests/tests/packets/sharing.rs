//! One client port that talks to several frontends.

use std::{
    hint,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use proxy_common::counter::Counter;
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort, Verdict},
};
use rstest::rstest;

/// Each frontend has a record of its own, and replies come from the right one.
#[rstest]
fn one_client_port_may_use_many_frontends(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    for index in 0..16 {
        let port = ServicePort::udp(cast.vip_with(index, 53), &[cast.endpoint(index)]);
        datapath.serve(&port);
    }
    for _ in 0..2 {
        for index in 0..16 {
            let request = Packet::udp(cast.pod(), cast.vip_with(index, 53));
            let led = request.clone().to(cast.endpoint(index));
            datapath.run(Hook::Ingress, &request).passed_as(&led);
        }
    }
    for index in 0..16 {
        let reply = Packet::udp(cast.endpoint(index), cast.pod());
        let ran = datapath.run(Hook::Egress, &reply);
        ran.passed_as(&reply.clone().from(cast.vip_with(index, 53)));
    }
    let flows = datapath.flows_of(cast.pod());
    assert_eq!(flows.len(), 16);
    assert_eq!(flows[0].highest, 15);
}

/// The seventeenth is refused.
#[rstest]
fn there_is_a_limit_to_frontends_of_one_port(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    for index in 0..=16 {
        let port = ServicePort::udp(cast.vip_with(index, 53), &[cast.endpoint(index)]);
        datapath.serve(&port);
    }
    for index in 0..16 {
        datapath.run(
            Hook::Ingress,
            &Packet::udp(cast.pod(), cast.vip_with(index, 53)),
        );
    }
    let request = Packet::udp(cast.pod(), cast.vip_with(16, 53));
    let ran = datapath.run(Hook::Ingress, &request);
    let error = Packet::prohibited(request.dst.ip(), &request, 8);
    ran.answered_by(&error.answering(&request));
    ran.counted(&[Counter::TooManyFrontends]);
}

/// Two CPUs with the first packets from one client port to two frontends look
/// for a free record at the same moment; each packet goes where it was sent to.
#[rstest]
fn flows_that_open_at_once_are_told_apart(#[values(Family::V4, Family::V6)] family: Family) {
    const ROUNDS: u16 = 500;
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    for index in 0..2 {
        let port = ServicePort::udp(cast.vip_with(index, 53), &[cast.endpoint(index)]);
        datapath.serve(&port);
    }
    let runner = &datapath.runner(Hook::Ingress);
    let arrived = &AtomicUsize::new(0);
    // How many went elsewhere. Who panicked would leave the other one waiting.
    let send = |index: u8| {
        let mut astray = 0;
        for round in 0..ROUNDS {
            let client = cast.pod_with(1, 10_000 + round);
            let request = Packet::udp(client, cast.vip_with(index, 53));
            let led = request.clone().to(cast.endpoint(index));
            let (request, led) = (request.bytes(), led.bytes());
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * (usize::from(round) + 1) {
                hint::spin_loop();
            }
            astray += u16::from(runner.run(&request) != (Verdict::Next, led));
        }
        astray
    };
    let astray = thread::scope(|scope| {
        let both = [0, 1].map(|index| scope.spawn(move || send(index)));
        both.map(|one| one.join().expect("no panic"))
    });
    assert_eq!(astray, [0, 0]);
}

/// Two flows of one client port take two backends, if there are two.
#[rstest]
fn flows_of_one_port_avoid_each_other(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backends = cast.endpoints(4);
    for index in 0..2 {
        datapath.serve(&ServicePort::udp(cast.vip_with(index, 53), &backends));
    }
    for port in 30_000..30_050 {
        let client = cast.pod_with(1, port);
        for index in 0..2 {
            datapath.run(
                Hook::Ingress,
                &Packet::udp(client, cast.vip_with(index, 53)),
            );
        }
        let flows = datapath.flows_of(client);
        assert_ne!(flows[0].backend, flows[1].backend, "{flows:?}");
    }
}

/// With one backend, the second flow gets another port towards it, and back at the
/// client replies come from the right frontend: whether or not they pass the ingress
/// hook of the backend's device on the way.
#[rstest]
fn flows_of_one_port_to_one_backend_are_told_apart(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] by_ingress: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    for index in 0..3 {
        datapath.serve(&ServicePort::udp(cast.vip_with(index, 53), &[backend]));
    }
    for index in 0..3 {
        let frontend = cast.vip_with(index, 53);
        let request = Packet::udp(cast.pod(), frontend);
        let ran = datapath.run(Hook::Ingress, &request);
        let flow = datapath.flows_of(cast.pod())[usize::from(index)];
        let seen = flow.between;
        assert_eq!(seen.ip(), cast.pod().ip());
        assert_eq!(seen == cast.pod(), index == 0);
        let led = request.to(backend).from(seen);
        ran.passed_as(&led);
        datapath.run(Hook::Egress, &led).passed_as(&led);

        let reply = Packet::udp(backend, seen);
        if by_ingress {
            datapath
                .run(Hook::Ingress, &reply)
                .left_alone(&reply.bytes());
        }
        let ran = datapath.run(Hook::Egress, &reply);
        ran.passed_as(&reply.from(frontend).to(cast.pod()));
    }
    assert_eq!(datapath.reply_tuples(family), 2);
}

/// Record 0 is how the others are found: it stays until they are gone.
#[rstest]
fn the_sweeper_keeps_record_0_for_its_siblings(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    for index in 0..2 {
        let port = ServicePort::udp(cast.vip_with(index, 53), &[cast.endpoint(index)]);
        datapath.serve(&port);
        datapath.run(Hook::Ingress, &Packet::udp(cast.pod(), port.frontend));
    }
    datapath.age(cast.pod(), 100);
    // The second flow still has traffic.
    let second = Packet::udp(cast.pod(), cast.vip_with(1, 53));
    datapath.run(Hook::Ingress, &second);
    datapath.sweep();
    assert_eq!(datapath.flows_of(cast.pod()).len(), 2);
    let ran = datapath.run(Hook::Ingress, &second);
    ran.passed_as(&second.clone().to(cast.endpoint(1)));
    datapath.age(cast.pod(), 100);
    datapath.sweep();
    datapath.sweep();
    assert_eq!(datapath.flows_of(cast.pod()), []);
}

/// A client reaches a backend directly from a port that it used through the
/// frontend before (E13).
#[rstest]
fn a_direct_connection_takes_over_a_closed_flow(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &Packet::syn(cast.pod(), cast.vip()));
    datapath.run(Hook::Egress, &Packet::rst(backend, cast.pod()));

    let direct = Packet::syn(cast.pod(), backend);
    let ran = datapath.run(Hook::Ingress, &direct);
    ran.passed_as(&direct);
    ran.counted(&[Counter::TupleClash]);
    let reply = Packet::syn_ack(backend, cast.pod());
    datapath
        .run(Hook::Egress, &reply)
        .left_alone(&reply.bytes());
}

/// A client that closed its connection may connect to the backend itself before the
/// backend has closed too: the SYN-ACK tells that the old connection is over,
/// and all that follows it belongs to the new one.
#[rstest]
fn an_open_flow_takes_no_other_connections_packets(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &Packet::syn(cast.pod(), cast.vip()));
    datapath.run(Hook::Egress, &Packet::syn_ack(backend, cast.pod()));
    datapath.run(Hook::Egress, &Packet::data(backend, cast.pod()));

    let direct = Packet::syn(cast.pod(), backend);
    datapath
        .run(Hook::Ingress, &direct)
        .left_alone(&direct.bytes());
    let reply = Packet::syn_ack(backend, cast.pod());
    let ran = datapath.run(Hook::Egress, &reply);
    ran.passed_as(&reply);
    ran.counted(&[Counter::TupleClash]);
    let data = Packet::data(backend, cast.pod());
    datapath.run(Hook::Egress, &data).left_alone(&data.bytes());
}

/// A client that uses a backend directly over UDP, from a port of a flow to it, gets
/// the backend's own answers from then on. Not before the datagram leaves: routing
/// may drop it, because somebody else sent it.
#[rstest]
fn a_direct_datagram_ends_a_flow_where_it_leaves(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(&[], &[0x8100])] tags: &[u16],
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.load_program("through");
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &Packet::udp(cast.pod(), cast.vip()));
    let direct = Packet {
        tags: tags.to_vec(),
        ..Packet::udp(cast.pod(), backend)
    };
    let answer = Packet::udp(backend, cast.pod());

    let ran = datapath.run(Hook::Ingress, &direct);
    ran.left_alone(&direct.bytes());
    let ran = datapath.run(Hook::Egress, &answer);
    ran.passed_as(&answer.clone().from(cast.vip()));

    let ran = datapath.run(Hook::Through, &direct);
    ran.passed_as(&direct);
    ran.counted(&[Counter::TupleClash]);
    let ran = datapath.run(Hook::Egress, &answer);
    ran.left_alone(&answer.bytes());
}

/// To a process of this host no packet leaves: there it ends the flow at once.
#[rstest]
fn a_direct_datagram_to_this_host_ends_a_flow(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.local_addr(backend.ip(), 0);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    datapath.run(Hook::Ingress, &Packet::udp(cast.pod(), cast.vip()));
    let direct = Packet::udp(cast.pod(), backend);
    let ran = datapath.run(Hook::Ingress, &direct);
    ran.passed_as(&direct);
    ran.counted(&[Counter::TupleClash]);
    let answer = Packet::udp(backend, cast.pod());
    let ran = datapath.run(Hook::HostEgress, &answer);
    ran.left_alone(&answer.bytes());
}

/// A record 0 that only leads to its siblings matches no packet.
#[rstest]
fn a_vacant_record_takes_no_packets(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.load_program("through");
    for index in 0..2 {
        let port = ServicePort::udp(cast.vip_with(index, 53), &[cast.endpoint(index)]);
        datapath.serve(&port);
        datapath.run(Hook::Ingress, &Packet::udp(cast.pod(), port.frontend));
    }
    datapath.run(Hook::Through, &Packet::udp(cast.pod(), cast.endpoint(0)));
    let direct = Packet::udp(cast.endpoint(0), cast.pod());
    datapath
        .run(Hook::Egress, &direct)
        .left_alone(&direct.bytes());
    // It has no port, but nor is port 0 what it was.
    for tags in [vec![], vec![0x8100]] {
        let nowhere = Packet {
            tags,
            ..Packet::udp(cast.pod(), cast.vip_with(0, 0))
        };
        let ran = datapath.run(Hook::Ingress, &nowhere);
        let error = Packet::port_unreachable(nowhere.dst.ip(), &nowhere, 8);
        ran.answered_by(&error.answering(&nowhere));
        ran.counted(&[Counter::UnknownPort]);
    }
    let sibling = Packet::udp(cast.endpoint(1), cast.pod());
    let ran = datapath.run(Hook::Egress, &sibling);
    ran.passed_as(&sibling.from(cast.vip_with(1, 53)));
    // Its place is free for the next frontend.
    let again = Packet::udp(cast.pod(), cast.vip_with(0, 53));
    let ran = datapath.run(Hook::Ingress, &again);
    ran.passed_as(&again.to(cast.endpoint(0)));
    assert_eq!(datapath.flows_of(cast.pod()).len(), 2);
}

/// A client that opens the connection through the frontend again gets its
/// answer from there.
#[rstest]
fn the_last_connection_a_client_opens_is_the_one_accepted(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    let open = Packet::syn(cast.pod(), cast.vip());
    datapath.run(Hook::Ingress, &open);
    datapath.run(Hook::Ingress, &Packet::syn(cast.pod(), backend));
    datapath.run(Hook::Ingress, &open);
    let reply = Packet::syn_ack(backend, cast.pod());
    let ran = datapath.run(Hook::Egress, &reply);
    ran.passed_as(&reply.from(cast.vip()));
}

/// Two peers that talk to each other through Services from one port, as gossip
/// protocols, NTP and IKE do: a peer's answer is no direct use of the peer
/// itself.
#[rstest]
fn peers_may_ask_each_other(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(&[], &[0x8100])] tags: &[u16],
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let peers = [cast.endpoint(1), cast.endpoint(2)];
    let frontends = [cast.vip_with(1, 7946), cast.vip_with(2, 7946)];
    for (peer, frontend) in peers.into_iter().zip(frontends) {
        datapath.serve(&ServicePort::udp(frontend, &[peer]));
    }
    let datagram = |src, dst| Packet {
        tags: tags.to_vec(),
        ..Packet::udp(src, dst)
    };
    for round in 0..3 {
        for (own, other) in [(0, 1), (1, 0)] {
            let question = datagram(peers[own], frontends[other]);
            let ran = datapath.run(Hook::Ingress, &question);
            ran.passed_as(&question.clone().to(peers[other]));
            if round == 0 && own == 0 {
                continue;
            }
            for (from, to) in [(own, other), (other, own)] {
                let answer = datagram(peers[from], peers[to]);
                let ran = datapath.run(Hook::Ingress, &answer);
                ran.left_alone(&answer.bytes());
                let ran = datapath.run(Hook::Egress, &answer);
                ran.passed_as(&answer.from(frontends[from]));
                ran.counted(&[]);
            }
        }
    }
}
