//! The fast path decides as the slow path does: nothing would change without
//! it.

use std::net::SocketAddr;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use proxy_common::local_addr::LocalAddr;
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, FlowRecord, Frontend, Hook, Packet, ServicePort},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_080;
/// A frame with a tag in it goes the slow way.
const VLAN: u16 = 0x8100;

const HOOKS: [Hook; 3] = [Hook::Ingress, Hook::Egress, Hook::HostEgress];
const KINDS: [fn(SocketAddr, SocketAddr) -> Packet; 6] = [
    Packet::syn,
    Packet::syn_ack,
    Packet::data,
    Packet::fin,
    Packet::rst,
    Packet::udp,
];
/// Those of [`KINDS`] that may come first.
const OPENERS: [usize; 2] = [0, 5];
/// More than there are addresses: the rest are those that flows have got.
const ENDS: usize = 16;

/// Two Services that share a backend, one with a NodePort; if `crowded`, with
/// filters in which others share the bits of all ends.
fn datapath(cast: Cast, crowded: bool) -> impl std::ops::DerefMut<Target = Datapath> {
    let mut datapath = Datapath::load();
    if crowded {
        crowd_filters(&mut datapath, cast);
    }
    datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    let (one, two) = (cast.endpoints(1), cast.endpoints(2));
    let node_port = || Frontend::node_port(NODE_PORT);
    datapath.serve_all(&[
        ServicePort::tcp(cast.vip(), &two).with(node_port()),
        ServicePort::udp(cast.vip(), &two).with(node_port()),
        ServicePort::tcp(cast.vip_with(11, 80), &one),
        ServicePort::udp(cast.vip_with(11, 80), &one),
    ]);
    datapath
}

fn ends(cast: Cast) -> Vec<SocketAddr> {
    vec![
        cast.pod(),
        cast.outsider(),
        cast.stranger(),
        cast.vip(),
        cast.vip_with(11, 80),
        cast.endpoint(1),
        cast.endpoint(2),
        SocketAddr::new(cast.node(), NODE_PORT),
        SocketAddr::new(cast.node(), 40_000),
    ]
}

fn sorted(datapath: &Datapath, family: Family) -> Vec<FlowRecord> {
    let mut flows = datapath.flows(family);
    flows.sort_by_key(|flow| (flow.client, flow.protocol, flow.index));
    flows
}

/// A step of a conversation: kind of packet, its two ends, and where it is seen.
type Step = (usize, [usize; 2], usize);

/// Plays the steps to both ways, and compares everything after each.
fn play(cast: Cast, fast: &Datapath, slow: &Datapath, steps: &[Step]) -> Result<(), TestCaseError> {
    for &(kind, indices, hook) in steps {
        let flows = sorted(fast, cast.family);
        let mut ends = ends(cast);
        let got = flows
            .iter()
            .flat_map(|flow| [flow.masquerade, flow.between]);
        ends.extend(got.filter(|end| end.port() != 0));
        let [src, dst] = indices.map(|index| ends[index % ends.len()]);
        // Of connections from a NodePort the fast path shows but the first packet.
        let outgoing = src.port() == NODE_PORT && HOOKS[hook] != Hook::Ingress;
        // What this host sends to its own addresses leaves by no device.
        let stays = dst.ip() == cast.node() && HOOKS[hook] != Hook::Ingress;
        if src == dst || stays || outgoing && !OPENERS.contains(&kind) {
            continue;
        }
        let plain = KINDS[kind](src, dst);
        let tagged = Packet {
            tags: vec![VLAN],
            ..plain.clone()
        };
        let (one, mut other) = (
            fast.run(HOOKS[hook], &plain),
            slow.run(HOOKS[hook], &tagged),
        );
        other.packet.drain(12..16);
        let (flows, too) = (sorted(fast, cast.family), sorted(slow, cast.family));
        prop_assert_eq!(one, other, "{:?} {:?}", HOOKS[hook], plain);
        prop_assert_eq!(flows, too, "{:?} {:?}", HOOKS[hook], plain);
    }
    Ok(())
}

/// Sets the bits of all ends in the filters of frontends and NodePorts: those of
/// Services that are gone are set still. That of backends also tells which datagrams
/// to note as questions of peers, which changes no packet but leaves a record.
fn crowd_filters(datapath: &mut Datapath, cast: Cast) {
    for end in ends(cast) {
        let others = [
            Frontend::external_ip(SocketAddr::new(end.ip(), 9)),
            Frontend::node_port(end.port()),
        ];
        for of in [ServicePort::tcp, ServicePort::udp] {
            for other in &others {
                let port = of(cast.vip_with(12, 80), &[]).with(*other);
                datapath.serve(&port);
                datapath.unserve(&port);
            }
        }
    }
}

/// The filters only save look-ups, so that bits that others share change nothing.
#[rstest]
fn both_paths_decide_alike(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values([false, false], [true, false], [false, true])] crowded: [bool; 2],
) {
    let cast = Cast::of(family);
    let ways = std::cell::RefCell::new(crowded.map(|crowded| datapath(cast, crowded)));
    let step = (0..KINDS.len(), [0..ENDS, 0..ENDS], 0..HOOKS.len());
    let config = Config {
        cases: 1000,
        failure_persistence: None,
        ..Config::default()
    };
    let steps = prop::collection::vec(step, 2..25);
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        let mut ways = ways.borrow_mut();
        let [fast, slow] = &mut *ways;
        fast.forget_flows();
        slow.forget_flows();
        play(cast, fast, slow, &steps)
    });
    outcome.expect("one answer");
}
