//! Datagrams in pieces.

use std::net::SocketAddr;

use proxy_common::counter::Counter;
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

/// A datagram in three fragments. Only the first one has ports and checksum.
fn fragments(src: SocketAddr, dst: SocketAddr, id: u16) -> [Packet; 3] {
    let payload = |byte| vec![byte; 64];
    [
        Packet::udp(src, dst)
            .with_payload(payload(1))
            .with_fragment(id, 0, true),
        Packet::udp(src, dst)
            .with_payload(payload(2))
            .with_fragment(id, 72, true),
        Packet::udp(src, dst)
            .with_payload(payload(3))
            .with_fragment(id, 136, false),
    ]
}

/// In whatever order the later ones come.
#[rstest]
fn all_fragments_follow_the_first(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values([0, 1, 2], [0, 2, 1])] order: [usize; 3],
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let (there, back) = (
        fragments(cast.pod(), cast.vip(), 5),
        fragments(backend, cast.pod(), 6),
    );
    for part in order {
        let ran = datapath.run(Hook::Ingress, &there[part]);
        ran.passed_as(&there[part].clone().to(backend));
    }
    for part in order {
        let ran = datapath.run(Hook::Egress, &back[part]);
        ran.passed_as(&back[part].clone().from(cast.vip()));
    }
    assert_eq!(datapath.flows_of(cast.pod()).len(), 1);
}

/// Half a datagram never passes.
#[rstest]
fn later_fragments_before_the_first_are_dropped(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] flow_is_open: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::udp(cast.vip(), &cast.endpoints(1)));
    if flow_is_open {
        datapath.run(Hook::Ingress, &Packet::udp(cast.pod(), cast.vip()));
    }
    let [_, second, third] = fragments(cast.pod(), cast.vip(), 5);
    for fragment in [second, third] {
        let ran = datapath.run(Hook::Ingress, &fragment);
        ran.dropped_for(Counter::FragmentUnknown);
    }
}

/// A reply's later fragment that overtakes the first is dropped, once it is known
/// that the backend answers this client in pieces. What the two exchange
/// directly passes in order, and so does what comes from elsewhere.
#[rstest]
fn later_fragments_of_replies_before_the_first_are_dropped(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] changed_port: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, backend) = (cast.pod(), cast.endpoint(1));
    for index in 1..=2 {
        datapath.serve(&ServicePort::udp(cast.vip_with(index, 53), &[backend]));
        let request = Packet::udp(client, cast.vip_with(index, 53));
        datapath.run(Hook::Ingress, &request);
    }
    let index = usize::from(changed_port);
    let flow = datapath.flows_of(client)[index];
    for fragment in fragments(backend, flow.between, 6) {
        let answer = fragment.clone().from(flow.frontend).to(client);
        datapath.run(Hook::Egress, &fragment).passed_as(&answer);
    }
    let [first, second, third] = fragments(backend, flow.between, 7);
    let ran = datapath.run(Hook::Egress, &third);
    ran.dropped_for(Counter::FragmentUnknown);
    for fragment in [first, second] {
        let answer = fragment.clone().from(flow.frontend).to(client);
        datapath.run(Hook::Egress, &fragment).passed_as(&answer);
    }
    let direct = fragments(SocketAddr::new(backend.ip(), 9), client, 8);
    for fragment in direct {
        let ran = datapath.run(Hook::Egress, &fragment);
        ran.left_alone(&fragment.bytes());
    }
    let [_, late, _] = fragments(cast.endpoint(2), client, 9);
    datapath.run(Hook::Egress, &late).left_alone(&late.bytes());
}

/// The ports of one datagram say nothing about another.
#[rstest]
fn datagrams_are_told_apart(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::udp(cast.vip(), &cast.endpoints(1)));
    datapath.run(Hook::Ingress, &fragments(cast.pod(), cast.vip(), 5)[0]);
    let ran = datapath.run(Hook::Ingress, &fragments(cast.pod(), cast.vip(), 6)[1]);
    ran.dropped_for(Counter::FragmentUnknown);
    let other = fragments(cast.pod_with(2, 40_000), cast.vip(), 5);
    let ran = datapath.run(Hook::Ingress, &other[1]);
    ran.dropped_for(Counter::FragmentUnknown);
}

/// Fragments to nobody we know pass as they are.
#[rstest]
fn fragments_that_are_not_ours_pass(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::udp(cast.vip(), &cast.endpoints(1)));
    for hook in [Hook::Ingress, Hook::Egress] {
        for fragment in fragments(cast.pod(), cast.stranger(), 5) {
            datapath.run(hook, &fragment).left_alone(&fragment.bytes());
        }
    }
}

/// Nor are those to an address that was a frontend's, or to another port of an
/// external IP (S48), although the filter may take both for ours.
#[rstest]
fn fragments_to_former_frontends_pass(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(Hook::Ingress, Hook::HostEgress)] hook: Hook,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let destination = SocketAddr::new(cast.stranger().ip(), 53);
    let other = SocketAddr::new(destination.ip(), 54);
    let port =
        ServicePort::udp(cast.vip(), &cast.endpoints(1)).with(Frontend::external_ip(destination));
    datapath.serve(&port);
    for fragment in fragments(cast.pod(), other, 5) {
        datapath.run(hook, &fragment).left_alone(&fragment.bytes());
    }
    datapath.unserve(&port);
    for target in [cast.vip(), destination] {
        for fragment in fragments(cast.pod(), target, 6) {
            datapath.run(hook, &fragment).left_alone(&fragment.bytes());
        }
    }
}

/// A masqueraded flow's fragments change twice on their way, in each direction.
#[rstest]
fn fragments_of_masqueraded_flows_pass(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let mut masquerade = None;
    for part in fragments(client, cast.vip(), 5) {
        let led = part.clone().to(backend);
        datapath.run(Hook::Ingress, &part).passed_as(&led);
        let ran = datapath.run(Hook::Egress, &led);
        let seen = datapath.flows_of(client)[0].masquerade;
        ran.passed_as(&led.from(seen));
        masquerade = Some(seen);
    }
    let masquerade = masquerade.expect("three fragments");
    for part in fragments(backend, masquerade, 6) {
        let back = part.clone().to(client);
        datapath.run(Hook::Ingress, &part).passed_as(&back);
        datapath
            .run(Hook::Egress, &back)
            .passed_as(&back.clone().from(cast.vip()));
    }
}

/// Between the hooks a later fragment may overtake the first: on another CPU, or
/// in the queue of a device between them.
#[rstest]
fn masqueraded_fragments_may_overtake_the_first(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] changed_port: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    for index in 1..=2 {
        datapath.serve(&ServicePort::udp(cast.vip_with(index, 53), &[backend]));
    }
    if changed_port {
        datapath.run(Hook::Ingress, &Packet::udp(client, cast.vip_with(2, 53)));
    }
    let parts = fragments(client, cast.vip_with(1, 53), 5);
    let led = parts.each_ref().map(|part| {
        let ran = datapath.run(Hook::Ingress, part);
        let flow = datapath.flows_of(client)[usize::from(changed_port)];
        let led = part.clone().to(backend).from(flow.between);
        ran.passed_as(&led);
        led
    });
    for index in [2, 0, 1] {
        let ran = datapath.run(Hook::Egress, &led[index]);
        let seen = datapath.flows_of(client)[usize::from(changed_port)].masquerade;
        ran.passed_as(&led[index].clone().from(seen));
    }
}

/// The first fragment of a refused datagram is answered, quoted as it is.
#[rstest]
fn a_refused_fragment_is_answered(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    datapath.serve(&ServicePort::udp(cast.vip(), &[]));
    let [first, second, _] = fragments(cast.pod(), cast.vip(), 5);
    let error = Packet::port_unreachable(cast.vip().ip(), &first, 8);
    datapath
        .run(Hook::Ingress, &first)
        .answered_by(&error.answering(&first));
    datapath
        .run(Hook::Ingress, &second)
        .dropped_for(Counter::FragmentUnknown);
}
