//! Flows whose backend must see an address of this node.

use std::{collections::BTreeSet, net::SocketAddr};

use proxy_common::{
    config::Config,
    counter::Counter,
    device::Device,
    net::{AddrV4, AddrV6},
};
use proxy_tests::{
    Family,
    packet::{Body, Cast, Datapath, Hook, Packet, ServicePort},
};
use rstest::rstest;

/// Leads a client's first packet through both hooks and returns the address
/// that the backend sees.
pub(crate) fn open(datapath: &Datapath, request: &Packet, backend: SocketAddr) -> SocketAddr {
    let led = request.clone().to(backend);
    datapath.run(Hook::Ingress, request).passed_as(&led);
    let ran = datapath.run(Hook::Egress, &led);
    let masquerade = datapath.flows_of(request.src)[0].masquerade;
    ran.passed_as(&led.from(masquerade));
    masquerade
}

/// A backend's reply takes the way back through both hooks.
#[track_caller]
pub(crate) fn returns(
    datapath: &Datapath,
    reply: &Packet,
    client: SocketAddr,
    frontend: SocketAddr,
) {
    let back = reply.clone().to(client);
    datapath.run(Hook::Ingress, reply).passed_as(&back);
    let last = datapath.run(Hook::Egress, &back);
    last.passed_as(&back.from(frontend));
}

/// The reason why a flow is masqueraded.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// The client is no pod.
    Outsider,
    /// The client is the backend.
    Hairpin,
    /// All flows are.
    All,
}

/// Out with the device's address and a port of ours, and back.
#[rstest]
fn the_backend_sees_the_device_and_the_client_the_frontend(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
    #[values(Why::Outsider, Why::Hairpin, Why::All)] why: Why,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    let client = match why {
        Why::Outsider => cast.outsider(),
        Why::Hairpin => SocketAddr::new(backend.ip(), 40_000),
        Why::All => cast.pod(),
    };
    if matches!(why, Why::All) {
        datapath.configure(|config| config.flags |= Config::MASQUERADE_ALL);
    }
    let (port, request): (_, fn(_, _) -> _) = if tcp {
        (ServicePort::tcp(cast.vip(), &[backend]), Packet::syn)
    } else {
        (ServicePort::udp(cast.vip(), &[backend]), Packet::udp)
    };
    datapath.serve(&port);
    let masquerade = open(&datapath, &request(client, cast.vip()), backend);
    assert_eq!(masquerade.ip(), cast.node());
    let number = masquerade.port();
    assert!(number >= 1024, "{number}");

    let reply = if tcp {
        Packet::syn_ack(backend, masquerade)
    } else {
        Packet::udp(backend, masquerade)
    };
    returns(&datapath, &reply, client, cast.vip());
    let again = open(&datapath, &request(client, cast.vip()), backend);
    assert_eq!(again, masquerade, "the second packet leaves like the first");
    assert_eq!(datapath.reply_tuples(family), 1);
}

/// Two frontends lead one client port to one backend. Between the hooks and
/// for the backend the flows differ, and each reply and each error, about
/// either direction, finds its own way.
#[rstest]
fn flows_of_one_port_to_one_backend_are_told_apart(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Why::Outsider, Why::Hairpin)] why: Why,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    let client = match why {
        Why::Hairpin => SocketAddr::new(backend.ip(), 40_000),
        _ => cast.outsider(),
    };
    let frontends = [1, 2, 3].map(|index| cast.vip_with(index, 53));
    for frontend in frontends {
        datapath.serve(&ServicePort::udp(frontend, &[backend]));
    }
    let (mut between, mut outside) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..2 {
        for (index, frontend) in frontends.into_iter().enumerate() {
            let request = Packet::udp(client, frontend);
            let ran = datapath.run(Hook::Ingress, &request);
            let inner = datapath.flows_of(client)[index].between;
            let led = request.clone().from(inner).to(backend);
            ran.passed_as(&led);
            let ran = datapath.run(Hook::Egress, &led);
            let outer = datapath.flows_of(client)[index].masquerade;
            assert_eq!((inner.ip(), outer.ip()), (client.ip(), cast.node()));
            let seen = led.clone().from(outer);
            ran.passed_as(&seen);

            let reply = Packet::udp(backend, outer);
            let back = reply.clone().to(inner);
            datapath.run(Hook::Ingress, &reply).passed_as(&back);
            let answer = Packet::udp(frontend, client);
            datapath.run(Hook::Egress, &back).passed_as(&answer);

            let error = Packet::port_unreachable(backend.ip(), &seen, 8);
            let mut back = Packet::port_unreachable(backend.ip(), &led, 8);
            datapath.run(Hook::Ingress, &error).passed_as(&back);
            let told = Packet::port_unreachable(frontend.ip(), &request, 8);
            datapath.run(Hook::Egress, &back).passed_as(&told);

            let error = Packet::port_unreachable(client.ip(), &answer, 8);
            back = Packet::port_unreachable(client.ip(), &Packet::udp(backend, inner), 8);
            datapath.run(Hook::Ingress, &error).passed_as(&back);
            let told = Packet::port_unreachable(outer.ip(), &reply, 8);
            datapath.run(Hook::Egress, &back).passed_as(&told);
            between.insert(inner);
            outside.insert(outer);
        }
    }
    assert_eq!((between.len(), outside.len()), (3, 3));
    assert_eq!(datapath.reply_tuples(family), 5);

    datapath.age(client, 200);
    datapath.sweep();
    datapath.sweep();
    assert_eq!(datapath.flows_of(client), []);
    assert_eq!(datapath.reply_tuples(family), 0);
}

/// The same for datagrams in pieces, whatever comes in between.
#[rstest]
fn fragments_of_such_flows_are_told_apart(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    let frontends = [cast.vip_with(1, 53), cast.vip_with(2, 53)];
    for frontend in frontends {
        datapath.serve(&ServicePort::udp(frontend, &[backend]));
    }
    let pieces = |src, dst, id| {
        [(0, true), (64, false)].map(|(offset, more)| {
            Packet::udp(src, dst)
                .with_payload(vec![7; 56])
                .with_fragment(id, offset, more)
        })
    };
    for (index, frontend) in frontends.into_iter().enumerate() {
        let mut flow = None;
        for piece in pieces(client, frontend, 5) {
            let ran = datapath.run(Hook::Ingress, &piece);
            let inner = datapath.flows_of(client)[index].between;
            let led = piece.from(inner).to(backend);
            ran.passed_as(&led);
            let ran = datapath.run(Hook::Egress, &led);
            let record = datapath.flows_of(client)[index];
            ran.passed_as(&led.from(record.masquerade));
            flow = Some(record);
        }
        let flow = flow.expect("two fragments");
        for piece in pieces(backend, flow.masquerade, 6) {
            let back = piece.clone().to(flow.between);
            datapath.run(Hook::Ingress, &piece).passed_as(&back);
            let answer = back.clone().from(frontend).to(client);
            datapath.run(Hook::Egress, &back).passed_as(&answer);
        }
    }
}

/// Two clients with the same port have reply tuples of their own.
#[rstest]
fn many_clients_share_no_reply_tuple(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let clients = (1..=200).map(|index| cast.outsider_with(index, 5000));
    let seen: BTreeSet<_> = clients
        .map(|client| open(&datapath, &Packet::udp(client, cast.vip()), backend))
        .collect();
    assert_eq!(seen.len(), 200);
    assert_eq!(datapath.reply_tuples(family), 200);
}

/// A record that was lost comes back with the same port.
#[rstest]
fn a_lost_flow_finds_its_port_again(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let request = Packet::udp(cast.outsider(), cast.vip());
    let before = open(&datapath, &request, backend);
    datapath.forget_flows();
    assert_eq!(open(&datapath, &request, backend), before);
}

/// Pods of the cluster keep their address.
#[rstest]
fn pods_are_not_masqueraded(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let led = Packet::syn(cast.pod(), cast.endpoint(1));
    datapath.serve(&ServicePort::tcp(cast.vip(), &[led.dst]));
    datapath
        .run(Hook::Ingress, &led.clone().to(cast.vip()))
        .passed_as(&led);
    datapath.run(Hook::Egress, &led).left_alone(&led.bytes());
    assert_eq!(datapath.reply_tuples(family), 0);
}

/// Whatever its numbers, a segment of an open connection is translated both
/// ways: nobody looks at windows (S83).
#[rstest]
#[case::ahead(0x2000_0000)]
#[case::behind(0xe000_0000)]
#[case::beyond(0x8000_0000)]
fn segments_outside_the_window_are_translated(
    #[values(Family::V4, Family::V6)] family: Family,
    #[case] distance: u32,
    #[values(true, false)] reset: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, frontend, backend) = (cast.outsider(), cast.vip(), cast.endpoint(1));
    datapath.serve(&ServicePort::tcp(frontend, &[backend]));
    let masquerade = open(&datapath, &Packet::syn(client, frontend), backend);
    let shifted = |mut packet: Packet| {
        if let Body::Tcp { seq, ack, .. } = &mut packet.body {
            *seq = seq.wrapping_add(distance);
            *ack = ack.wrapping_add(distance);
        }
        packet
    };
    let answer = Packet::syn_ack(backend, masquerade);
    returns(&datapath, &answer, client, frontend);
    open(&datapath, &Packet::data(client, frontend), backend);
    let data = Packet::data(backend, masquerade);
    returns(&datapath, &data, client, frontend);

    open(&datapath, &shifted(Packet::data(client, frontend)), backend);
    returns(&datapath, &shifted(data), client, frontend);
    if reset {
        let reset = shifted(Packet::rst(backend, masquerade));
        returns(&datapath, &reset, client, frontend);
    }
    open(&datapath, &Packet::data(client, frontend), backend);
}

/// Clients are told from pods by the device they come in by, whatever their
/// address (S68).
#[rstest]
fn the_device_tells_who_is_a_pod(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.configure(|config| config.flags = Config::DETECT_DEVICE);
    for (number, pods) in [(41_000, true), (41_001, false)] {
        let flags = if pods { Device::LOCAL_CLIENTS } else { 0 };
        datapath.device(|device| device.flags = flags);
        for client in [cast.pod_with(1, number), cast.outsider_with(1, number)] {
            let led = Packet::syn(client, backend);
            datapath
                .run(Hook::Ingress, &led.clone().to(cast.vip()))
                .passed_as(&led);
            let ran = datapath.run(Hook::Egress, &led);
            if pods {
                ran.left_alone(&led.bytes());
            } else {
                let masquerade = datapath.flows_of(client)[0].masquerade;
                assert_eq!(masquerade.ip(), cast.node());
                ran.passed_as(&led.from(masquerade));
            }
        }
    }
    assert_eq!(datapath.reply_tuples(family), 2);
}

/// A device without an address can masquerade nothing.
#[rstest]
fn without_an_address_nothing_leaves(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.device(|device| {
        device.masquerade_v4 = AddrV4::default();
        device.masquerade_v6 = AddrV6::default();
    });
    let led = Packet::syn(cast.outsider(), cast.endpoint(1));
    datapath.serve(&ServicePort::tcp(cast.vip(), &[led.dst]));
    datapath
        .run(Hook::Ingress, &led.clone().to(cast.vip()))
        .passed_as(&led);
    datapath
        .run(Hook::Egress, &led)
        .dropped_for(Counter::MasqueradeNoAddress);
}

/// Flow and reply tuple go together (P6).
#[rstest]
fn the_sweeper_removes_flow_and_reply_tuple(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let request = Packet::udp(cast.outsider(), cast.vip());
    let masquerade = open(&datapath, &request, backend);
    datapath.age(cast.outsider(), 29);
    datapath.sweep();
    assert_eq!(datapath.flows_of(cast.outsider()).len(), 1);
    datapath.age(cast.outsider(), 3);
    datapath.sweep();
    assert_eq!(datapath.flows_of(cast.outsider()), []);
    assert_eq!(datapath.reply_tuples(family), 0);
    let late = Packet::udp(backend, masquerade);
    datapath.run(Hook::Ingress, &late).left_alone(&late.bytes());
}

/// UDP that moves to another backend gets another reply tuple and leaves none
/// behind.
#[rstest]
fn moving_to_another_backend_leaves_no_reply_tuple(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (old, new) = (cast.endpoint(1), cast.endpoint(2));
    let request = Packet::udp(cast.outsider(), cast.vip());
    datapath.serve(&ServicePort::udp(cast.vip(), &[old]));
    open(&datapath, &request, old);
    datapath.serve(&ServicePort::udp(cast.vip(), &[new]));
    let masquerade = open(&datapath, &request, new);
    assert_eq!(datapath.reply_tuples(family), 1);
    returns(
        &datapath,
        &Packet::udp(new, masquerade),
        cast.outsider(),
        cast.vip(),
    );
}
