//! The prefilter holds every bit that something needs, and in the end no other.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use proxy_common::{
    backend::Backend,
    family::V4,
    net::{Address as _, BePort, Protocol},
    prefilter,
};

use super::{
    super::{Planner, alloc::GRACE, filter::FlowEnds, memory::Memory},
    CAPACITY,
    cluster::{Cluster, TestFamily, small},
    sync,
};
/// Sets and clears as the periodic comparison does.
fn compare_filters<F: TestFamily>(planner: &mut Planner<F>, memory: &mut Memory<F>, now: Instant) {
    let mut plans = vec![planner.repair_filters()];
    let mut excess = planner.excess(now);
    memory.flows.iter().for_each(|flow| excess.keep(flow));
    plans.push(planner.clear_idle(&excess, now));
    for write in plans.iter().flat_map(|plan| &plan.writes) {
        memory.write(write).expect("writes succeed");
    }
}

/// Bits that the tables and the flows need.
fn needed_bits<F: TestFamily>(memory: &Memory<F>) -> BTreeSet<(u32, u32)> {
    let mut bits = BTreeSet::new();
    for key in memory.tables.frontends.keys() {
        bits.insert(if key.addr.is_zero() {
            let bit = prefilter::node_port_bit(key.port, key.protocol);
            (prefilter::NODE_PORTS, bit)
        } else {
            (prefilter::FRONTENDS, prefilter::frontend_bit(&key.addr))
        });
    }
    for backend in &memory.tables.backends {
        let name = memory.tables.names.get(&backend.service);
        if let Some(name) = name.filter(|_| backend.flags & Backend::<F::Addr>::USED != 0) {
            let bit = prefilter::backend_bit(&backend.addr, backend.port, name.protocol);
            bits.insert((prefilter::BACKENDS, bit));
        }
    }
    for flow in &memory.flows {
        bits.insert((
            prefilter::FRONTENDS,
            prefilter::frontend_bit(&flow.frontend),
        ));
        let bit = prefilter::backend_bit(&flow.backend, flow.backend_port, flow.protocol);
        bits.insert((prefilter::BACKENDS, bit));
    }
    bits
}

fn set_bits<F: TestFamily>(memory: &Memory<F>) -> BTreeSet<(u32, u32)> {
    let mut bits = BTreeSet::new();
    for (filter, words) in (0..).zip(&memory.tables.filters) {
        for (index, word) in (0..).zip(words).filter(|(_, word)| **word != 0) {
            let set = (0..64).filter(|bit| word >> bit & 1 == 1);
            bits.extend(set.map(|bit| (filter, index * 64 + bit)));
        }
    }
    bits
}

/// Whatever changes, and however often it is compared: no bit is missing that
/// an entry or a flow needs, also a flow that was opened to what has just gone
/// and is not in its table yet; and in the end no other is left.
pub(super) fn filters_hold_what_tables_and_flows_need<F: TestFamily>(
    clusters: Vec<(Cluster, u64)>,
    flows: Vec<(u8, u8, bool)>,
) {
    let mut planner = Planner::<F>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let mut now = Instant::now();
    // Flows to anything that was in the tables once are still there.
    let outliving = |memory: &Memory<F>| {
        let set = set_bits(memory);
        let ends = flows.iter().map(|&(vip, endpoint, udp)| FlowEnds {
            frontend: F::addr(F::nth(96, vip)),
            frontend_port: BePort::new(80),
            backend: F::addr(F::nth(244, endpoint)),
            backend_port: BePort::new(8080),
            protocol: if udp { Protocol::UDP } else { Protocol::TCP },
        });
        let known = |flow: &FlowEnds<F::Addr>| {
            let bit = prefilter::backend_bit(&flow.backend, flow.backend_port, flow.protocol);
            set.contains(&(
                prefilter::FRONTENDS,
                prefilter::frontend_bit(&flow.frontend),
            )) && set.contains(&(prefilter::BACKENDS, bit))
        };
        ends.filter(known).collect::<Vec<_>>()
    };
    for (cluster, milliseconds) in &clusters {
        sync(&mut planner, &mut memory, cluster, now).expect("writes succeed");
        memory.flows = outliving(&memory);
        let before = needed_bits(&memory);
        compare_filters(&mut planner, &mut memory, now);
        assert!(needed_bits(&memory).is_subset(&set_bits(&memory)));

        // Programs that found these before they go may still open a flow.
        sync(&mut planner, &mut memory, &Cluster::new(), now).expect("writes succeed");
        now += Duration::from_millis(*milliseconds % 900);
        compare_filters(&mut planner, &mut memory, now);
        assert!(before.is_subset(&set_bits(&memory)));
        now += Duration::from_millis(*milliseconds);
    }
    for _ in 0..2 {
        now += GRACE;
        compare_filters(&mut planner, &mut memory, now);
    }
    assert_eq!(set_bits(&memory), needed_bits(&memory));
}

#[test]
fn bits_that_somebody_cleared_are_set_again() {
    let mut planner = Planner::<V4>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let (number, mut shape) = small(0, 1);
    shape.ports[0].node_port = Some(30_000);
    let cluster = Cluster::from([(number, shape)]);
    let now = Instant::now();
    sync(&mut planner, &mut memory, &cluster, now).expect("writes succeed");
    memory.tables.filters = Default::default();
    planner.adopt_filters(&memory.tables.filters);
    compare_filters(&mut planner, &mut memory, now);
    assert_eq!(set_bits(&memory).len(), 3);
    assert_eq!(set_bits(&memory), needed_bits(&memory));
}
