//! Laws of planning, checked on generated clusters in both families.
#![allow(
    clippy::needless_pass_by_value,
    reason = "laws take the values that were generated for them"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use proxy_common::{
    backend::Backend,
    family::{V4, V6},
    net::{BePort, Protocol},
    prefilter,
    service::{Run, Service},
};

use super::{
    alloc::GRACE,
    filter::FlowEnds,
    memory::{Memory, Resolved},
    write::Tables,
    *,
};
use crate::select::{DesiredFrontend, EndpointUse, FrontendKind, WhenEmpty};

const CAPACITY: Capacity = Capacity {
    frontends: 256,
    services: 64,
    slots: 512,
    backends: 512,
    source_ranges: 64,
};

/// A family whose addresses a test can make from small numbers.
trait TestFamily: Family {
    fn nth(kind: u8, number: u8) -> Self::Ip;
}

impl TestFamily for V4 {
    fn nth(kind: u8, number: u8) -> Self::Ip {
        std::net::Ipv4Addr::new(10, kind, 0, number)
    }
}

impl TestFamily for V6 {
    fn nth(kind: u8, number: u8) -> Self::Ip {
        std::net::Ipv6Addr::new(0xfd00, u16::from(kind), 0, 0, 0, 0, 0, u16::from(number))
    }
}

/// A Service without addresses: numbers that become either family's.
#[derive(Clone, Debug)]
struct Shape {
    vip: u8,
    ports: Vec<PortShape>,
}

#[derive(Clone, Debug)]
struct PortShape {
    number: u16,
    udp: bool,
    local_set: bool,
    drops: bool,
    /// Number, serving, in cluster set, in local set.
    endpoints: BTreeMap<u8, (bool, bool, bool)>,
}

type Cluster = BTreeMap<u8, Shape>;

fn port_shape() -> impl Strategy<Value = PortShape> {
    let endpoint = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        80_u16..83,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::collection::btree_map(0_u8..12, endpoint, 0..6),
    )
        .prop_map(|(number, udp, local_set, drops, endpoints)| PortShape {
            number,
            udp,
            local_set,
            drops,
            endpoints,
        })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let shape = (0_u8..5, prop::collection::vec(port_shape(), 0..3))
        .prop_map(|(vip, ports)| Shape { vip, ports });
    prop::collection::btree_map(0_u8..6, shape, 0..6)
}

fn service_key(number: u8) -> ObjectKey {
    ObjectKey {
        namespace: "default".to_owned(),
        name: format!("service-{number}"),
    }
}

fn desired<F: TestFamily>(number: u8, shape: &Shape) -> Vec<DesiredPort<F>> {
    let mut seen = BTreeSet::new();
    shape
        .ports
        .iter()
        .filter(|port| seen.insert((port.number, port.udp)))
        .map(|port| DesiredPort {
            name: ServicePortName {
                service: service_key(number),
                port: format!("p{}", port.number),
                protocol: if port.udp {
                    Protocol::UDP
                } else {
                    Protocol::TCP
                },
            },
            frontends: vec![DesiredFrontend {
                local_set: port.local_set,
                ..DesiredFrontend::new(FrontendKind::ClusterIp, F::nth(96, shape.vip), port.number)
            }],
            endpoints: port
                .endpoints
                .iter()
                .map(|(&number, &(serving, cluster, local))| {
                    let used = EndpointUse {
                        serving,
                        here: local,
                        cluster,
                        local,
                    };
                    ((F::nth(244, number), 8080), used)
                })
                .collect(),
            affinity: None,
            source_ranges: Vec::new(),
            cluster_empty: when(port.drops),
            local_empty: when(!port.drops),
        })
        .collect()
}

fn when(drops: bool) -> WhenEmpty {
    if drops {
        WhenEmpty::Drop
    } else {
        WhenEmpty::Reject
    }
}

/// Plans the whole cluster and does the writes, as the agent does after a
/// relist. Returns the number of writes, or `None` when one failed.
fn sync<F: TestFamily>(
    planner: &mut Planner<F>,
    memory: &mut Memory<F>,
    cluster: &Cluster,
    now: Instant,
) -> Option<usize> {
    let mut count = 0;
    let gone: Vec<_> = planner
        .services()
        .filter(|key| !cluster.keys().any(|number| service_key(*number) == **key))
        .cloned()
        .collect();
    let mut plans: Vec<Plan<F>> = gone
        .iter()
        .map(|key| planner.update(key, &[], now))
        .collect();
    for (&number, shape) in cluster {
        plans.push(planner.update(&service_key(number), &desired(number, shape), now));
    }
    plans.push(planner.remove_strays());
    for plan in plans {
        for write in &plan.writes {
            memory.write(write).ok()?;
            count += 1;
        }
    }
    Some(count)
}

/// The front ends that some Service of the cluster wants, with every answer
/// that would be right: more than one where Services share an address.
fn expected<F: TestFamily>(cluster: &Cluster) -> BTreeMap<FrontendKey<F::Addr>, Vec<Resolved<F>>> {
    let mut expected: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (&number, shape) in cluster {
        for port in desired::<F>(number, shape) {
            for frontend in &port.frontends {
                let key = frontend.key(port.name.protocol);
                let (member, empty): (fn(&EndpointUse) -> bool, _) = if frontend.local_set {
                    (|used| used.local, port.local_empty)
                } else {
                    (|used| used.cluster, port.cluster_empty)
                };
                let backends: Vec<_> = port
                    .endpoints
                    .iter()
                    .filter(|(_, used)| member(used))
                    .map(|(endpoint, _)| *endpoint)
                    .collect();
                expected.entry(key).or_default().push(match empty {
                    _ if !backends.is_empty() => Resolved::Backends(backends),
                    WhenEmpty::Drop => Resolved::Drop,
                    WhenEmpty::Reject => Resolved::Reject,
                });
            }
        }
    }
    expected
}

fn assert_serves<F: TestFamily>(memory: &Memory<F>, cluster: &Cluster) {
    let expected = expected::<F>(cluster);
    for (key, right) in &expected {
        let actual = memory.resolve(key);
        assert!(
            right.contains(&actual),
            "{key:?}: {actual:?}, not {right:?}"
        );
        assert_eq!(
            memory.resolve(&FrontendKey::new(key.addr, BePort::new(9), key.protocol)),
            Resolved::UnknownPort
        );
        let bit = prefilter::frontend_bit(&key.addr) as usize;
        assert!(memory.tables.filters[0][bit / 64] >> (bit % 64) & 1 == 1);
    }
    for key in memory.tables.frontends.keys() {
        let wanted = if key.port == BePort::ZERO {
            expected.keys().any(|other| other.addr == key.addr)
        } else {
            expected.contains_key(key)
        };
        assert!(wanted, "left behind: {key:?}");
    }
}

/// Runs one law for both families.
macro_rules! both_families {
    ($($law:ident($($argument:ident in $strategy:expr),+);)+) => { $(
        mod $law {
            use super::*;
            proptest! {
                #[test]
                fn v4($($argument in $strategy),+) { super::$law::<V4>($($argument),+); }
                #[test]
                fn v6($($argument in $strategy),+) { super::$law::<V6>($($argument),+); }
            }
        }
    )+ };
}

both_families! {
    plan_then_write_reaches_desired(clusters in prop::collection::vec(cluster(), 1..5));
    every_step_serves_old_or_new(before in cluster(), after in cluster());
    a_failed_write_is_made_good(before in cluster(), after in cluster(), fail in 0_usize..40);
    any_tables_can_be_adopted(junk in tables(), cluster in cluster());
    filters_hold_what_tables_and_flows_need(
        clusters in prop::collection::vec((cluster(), 0_u64..1500), 1..4),
        flows in prop::collection::vec((0_u8..5, 0_u8..12, any::<bool>()), 0..6)
    );
}

fn plan_then_write_reaches_desired<F: TestFamily>(clusters: Vec<Cluster>) {
    let mut planner = Planner::<F>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let mut now = Instant::now();
    for cluster in &clusters {
        sync(&mut planner, &mut memory, cluster, now).expect("writes succeed");
        assert_serves(&memory, cluster);
        assert_eq!(
            sync(&mut planner, &mut memory, cluster, now),
            Some(0),
            "a second sync has nothing to do"
        );
        let mut adopted = Planner::<F>::adopt(CAPACITY, &memory.tables);
        assert_eq!(
            sync(&mut adopted, &mut memory, cluster, now),
            Some(0),
            "nor has an agent that starts on these tables"
        );
        now += Duration::from_secs(2);
    }
}

/// Sets and clears as the periodic comparison does.
fn compare_filters<F: TestFamily>(planner: &mut Planner<F>, memory: &mut Memory<F>, now: Instant) {
    let mut plans = vec![planner.mend_filters()];
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
fn filters_hold_what_tables_and_flows_need<F: TestFamily>(
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
    let port = PortShape {
        number: 80,
        udp: false,
        local_set: false,
        drops: false,
        endpoints: BTreeMap::from([(1, (true, true, true))]),
    };
    let shape = Shape {
        vip: 1,
        ports: vec![port],
    };
    let cluster = Cluster::from([(0, shape)]);
    let now = Instant::now();
    sync(&mut planner, &mut memory, &cluster, now).expect("writes succeed");
    memory.tables.filters = Default::default();
    planner.adopt_filters(&memory.tables.filters);
    compare_filters(&mut planner, &mut memory, now);
    assert_eq!(set_bits(&memory).len(), 2);
    assert_eq!(set_bits(&memory), needed_bits(&memory));
}

/// While one Service changes, each of its front ends leads to what it led to
/// before or to what it shall lead to, and never to nowhere.
fn every_step_serves_old_or_new<F: TestFamily>(before: Cluster, after: Cluster) {
    let mut planner = Planner::<F>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let now = Instant::now();
    sync(&mut planner, &mut memory, &before, now).expect("writes succeed");
    let (old, new) = (expected::<F>(&before), expected::<F>(&after));
    let numbers: BTreeSet<u8> = before.keys().chain(after.keys()).copied().collect();
    for number in numbers {
        let desired = after
            .get(&number)
            .map(|shape| desired(number, shape))
            .unwrap_or_default();
        for write in &planner.update(&service_key(number), &desired, now).writes {
            memory.write(write).expect("writes succeed");
            for key in old.keys().chain(new.keys()) {
                let actual = memory.resolve(key);
                let absent = matches!(actual, Resolved::NotOurs | Resolved::UnknownPort)
                    && !(old.contains_key(key) && new.contains_key(key));
                let known = |wanted: &BTreeMap<_, Vec<_>>| {
                    wanted.get(key).is_some_and(|right| right.contains(&actual))
                };
                // A front end that passes from one Service to another may be
                // absent or shown as either's; one that stays must not be.
                let moves = old.get(key).is_some_and(|o| o.len() > 1)
                    || new.get(key).is_some_and(|n| n.len() > 1)
                    || old.get(key).map(Vec::len) != new.get(key).map(Vec::len)
                    || owner::<F>(&before, key) != owner::<F>(&after, key);
                assert_ne!(actual, Resolved::Broken, "{key:?} after {write:?}");
                assert!(
                    absent || known(&old) || known(&new) || moves,
                    "{key:?}: {actual:?} after {write:?}"
                );
            }
        }
    }
    assert_serves(&memory, &after);
}

/// The Service that wants a front end, where only one does.
fn owner<F: TestFamily>(cluster: &Cluster, key: &FrontendKey<F::Addr>) -> Option<u8> {
    cluster
        .iter()
        .find(|(number, shape)| {
            desired::<F>(**number, shape).iter().any(|port| {
                let mut frontends = port.frontends.iter();
                frontends.any(|frontend| frontend.key(port.name.protocol) == *key)
            })
        })
        .map(|(number, _)| *number)
}

fn a_failed_write_is_made_good<F: TestFamily>(before: Cluster, after: Cluster, fail: usize) {
    let mut planner = Planner::<F>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let now = Instant::now();
    sync(&mut planner, &mut memory, &before, now).expect("writes succeed");
    memory.fail_after = Some(fail);
    if sync(&mut planner, &mut memory, &after, now).is_none() {
        let mut planner = Planner::<F>::adopt(CAPACITY, &memory.tables);
        sync(
            &mut planner,
            &mut memory,
            &after,
            now + Duration::from_secs(2),
        )
        .expect("the next sync succeeds");
    }
    assert_serves(&memory, &after);
}

/// Numbers that become tables no agent would write.
type Junk = (
    Vec<(u32, u32, u32, u32)>,
    Vec<u32>,
    Vec<(u8, u32, u8, u32)>,
    BTreeMap<u32, u8>,
    Vec<(u8, u16, u32, u8, bool)>,
);

fn tables() -> impl Strategy<Value = Junk> {
    let row = 0_u32..70;
    (
        prop::collection::vec((0_u32..600, 0_u32..9, 0_u32..600, 0_u32..9), 0..20),
        prop::collection::vec(0_u32..600, 0..40),
        prop::collection::vec((0_u8..12, row.clone(), 0_u8..4, 0_u32..5), 0..40),
        prop::collection::btree_map(row.clone(), 0_u8..6, 0..10),
        prop::collection::vec((0_u8..5, 80_u16..83, row, 0_u8..2, any::<bool>()), 0..10),
    )
}

fn any_tables_can_be_adopted<F: TestFamily>(junk: Junk, cluster: Cluster) {
    let (services, slots, backends, names, frontends) = junk;
    let mut memory = Memory::<F>::new(CAPACITY);
    memory.tables = Tables {
        services: services
            .into_iter()
            .map(|(a, b, c, d)| Service {
                cluster: Run { first: a, count: b },
                local: Run { first: c, count: d },
                ..Service::FREE
            })
            .collect(),
        slots,
        backends: backends
            .into_iter()
            .map(|(number, service, flags, generation)| Backend {
                addr: F::addr(F::nth(244, number)),
                service,
                generation,
                port: BePort::new(8080),
                flags,
                epoch: 0,
            })
            .collect(),
        names: names
            .into_iter()
            .map(|(row, number)| {
                let name = ServicePortName {
                    service: service_key(number),
                    port: "p80".to_owned(),
                    protocol: Protocol::TCP,
                };
                (row, name)
            })
            .collect(),
        frontends: frontends
            .into_iter()
            .map(|(vip, port, service, flags, tagged)| {
                let key =
                    FrontendKey::new(F::addr(F::nth(96, vip)), BePort::new(port), Protocol::TCP);
                let tag = if tagged { key.tag() } else { 0 };
                let frontend = Frontend {
                    service,
                    flags,
                    kind: Frontend::CLUSTER_IP,
                    tag,
                };
                (key, frontend)
            })
            .collect(),
        ..Tables::default()
    };
    let mut planner = Planner::<F>::adopt(CAPACITY, &memory.tables);
    sync(&mut planner, &mut memory, &cluster, Instant::now()).expect("writes succeed");
    assert_serves(&memory, &cluster);
}

fn small(number: u8, endpoints: u8) -> (u8, Shape) {
    let port = PortShape {
        number: 80,
        udp: false,
        local_set: false,
        drops: false,
        endpoints: (0..endpoints).map(|n| (n, (true, true, false))).collect(),
    };
    let shape = Shape {
        vip: number,
        ports: vec![port],
    };
    (number, shape)
}

#[test]
fn a_full_table_harms_only_the_newcomer() {
    let capacity = Capacity {
        backends: 10,
        ..CAPACITY
    };
    let mut planner = Planner::<V4>::new(capacity);
    let mut memory = Memory::new(capacity);
    let now = Instant::now();
    let first = Cluster::from([small(1, 8)]);
    sync(&mut planner, &mut memory, &first, now).expect("writes succeed");
    let (number, shape) = small(2, 5);
    let plan = planner.update(&service_key(2), &desired(number, &shape), now);
    assert!(plan.writes.is_empty());
    assert_eq!(
        plan.problems
            .iter()
            .map(Problem::to_string)
            .collect::<Vec<_>>(),
        ["table BACKENDS is full (10 entries): default/service-2:p80 stays as it was"]
    );
    assert_serves(&memory, &first);
    // Room that the first one gives up is the second one's after the grace.
    let plan = planner.update(&service_key(1), &[], now);
    plan.writes
        .iter()
        .for_each(|write| memory.write(write).expect("writes succeed"));
    let later = now + Duration::from_secs(2);
    let second = Cluster::from([small(2, 5)]);
    sync(&mut planner, &mut memory, &second, later).expect("writes succeed");
    assert_serves(&memory, &second);
}

#[test]
fn the_first_owner_keeps_an_address_and_the_next_takes_over() {
    let mut planner = Planner::<V6>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let now = Instant::now();
    let mut both = Cluster::from([small(2, 3)]);
    sync(&mut planner, &mut memory, &both, now).expect("writes succeed");
    let (_, mut shape) = small(2, 5);
    shape.vip = 2;
    both.insert(1, shape.clone());
    let plan = planner.update(&service_key(1), &desired(1, &shape), now);
    plan.writes
        .iter()
        .for_each(|write| memory.write(write).expect("writes succeed"));
    assert_eq!(
        plan.problems
            .iter()
            .map(Problem::to_string)
            .collect::<Vec<_>>(),
        [
            "[fd00:60::2]:80 of default/service-1:p80 already belongs to default/service-2:p80, which keeps it"
        ]
    );
    let vip = FrontendKey::new(V6::addr(V6::nth(96, 2)), BePort::new(80), Protocol::TCP);
    assert!(matches!(memory.resolve(&vip), Resolved::Backends(b) if b.len() == 3));
    let plan = planner.update(&service_key(2), &[], now);
    plan.writes
        .iter()
        .for_each(|write| memory.write(write).expect("writes succeed"));
    assert!(matches!(memory.resolve(&vip), Resolved::Backends(b) if b.len() == 5));
}

/// P5, P8: however many addresses a port has, an endpoint change is one store.
#[test]
fn an_endpoint_change_is_one_store() {
    let mut planner = Planner::<V4>::new(CAPACITY);
    let now = Instant::now();
    let (number, shape) = small(1, 3);
    planner.update(&service_key(1), &desired(number, &shape), now);
    let (number, shape) = small(1, 4);
    let writes = planner
        .update(&service_key(1), &desired(number, &shape), now)
        .writes;
    let stores = writes
        .iter()
        .filter(|write| matches!(write, Write::Run { .. }))
        .count();
    assert_eq!(stores, 1);
    assert!(
        !writes
            .iter()
            .any(|write| matches!(write, Write::Frontend { .. }))
    );
}
