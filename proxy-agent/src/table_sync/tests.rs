use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use proxy_common::{
    family::{V4, V6},
    frontend::FrontendKey,
    net::{Address as _, BePort, Protocol},
    service::{SessionAffinity, SlotRange},
    table::Table,
};

use super::*;
use crate::{
    model::{Cidr, ServicePortName},
    plan::{
        alloc::GRACE,
        filter::FlowEnds,
        memory::{Memory, Resolved},
        write::{Capacity, RangeKey, Tables, Write},
    },
    select::{DesiredFrontend, DesiredPort, EndpointUse, FrontendKind, WhenEmpty},
};

fn service(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn port<F: Family>(name: &str, vip: F::Ip, endpoint: F::Ip) -> DesiredPort<F> {
    DesiredPort {
        name: ServicePortName {
            service: service(name),
            port: "http".into(),
            protocol: Protocol::TCP,
        },
        frontends: vec![DesiredFrontend::new(FrontendKind::ClusterIp, vip, 80)],
        endpoints: BTreeMap::from([(
            (endpoint, 8080),
            EndpointUse {
                serving: true,
                here: false,
                cluster: true,
                local: false,
            },
        )]),
        affinity: None,
        source_ranges: Vec::new(),
        cluster_empty: WhenEmpty::Reject,
        local_empty: WhenEmpty::Reject,
    }
}

fn table_sync<F: Family>() -> TableSync<F, Memory<F>> {
    TableSync::new(Memory::new(Capacity {
        frontends: 16,
        services: 8,
        slots: 16,
        backends: 8,
        source_ranges: 8,
    }))
    .expect("memory can be read")
}

fn resolve<F: Family>(table_sync: &TableSync<F, Memory<F>>, vip: F::Ip) -> Resolved<F> {
    let key = FrontendKey::new(F::addr(vip), BePort::new(80), Protocol::TCP);
    table_sync.dataplane.resolve(&key)
}

/// The desired ports of some Services.
type Wishes<F> = BTreeMap<ObjectKey, Vec<DesiredPort<F>>>;

fn sync<F: Family, D: Dataplane<F>>(
    table_sync: &mut TableSync<F, D>,
    wishes: &Wishes<F>,
    complete: bool,
) -> SyncOutcome {
    let services = wishes.keys().cloned().collect();
    table_sync.sync(&services, complete, &mut |service| told(wishes, service))
}

fn audit<F: Family>(table_sync: &mut TableSync<F, Memory<F>>, wishes: &Wishes<F>) -> usize {
    let services = wishes.keys().cloned().collect();
    let repairs = table_sync.audit(&services, &mut |service| told(wishes, service));
    repairs.expect("readable")
}

fn told<F: Family>(wishes: &Wishes<F>, service: &ObjectKey) -> Vec<DesiredPort<F>> {
    wishes.get(service).cloned().unwrap_or_default()
}

fn a_failed_write_is_repeated<F: Family>(vip: F::Ip, endpoint: F::Ip) {
    let mut table_sync = table_sync::<F>();
    table_sync.dataplane.fail_after = Some(3);
    let desired = BTreeMap::from([(service("a"), vec![port::<F>("a", vip, endpoint)])]);
    let outcome = sync(&mut table_sync, &desired, false);
    assert!(outcome.error.is_some());
    let outcome = sync(&mut table_sync, &desired, true);
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    assert_eq!(
        resolve(&table_sync, vip),
        Resolved::Backends(vec![(endpoint, 8080)])
    );
}

#[test]
fn a_failed_write_is_repeated_in_both_families() {
    a_failed_write_is_repeated::<V4>([10, 96, 0, 1].into(), [10, 244, 0, 1].into());
    a_failed_write_is_repeated::<V6>(1_u128.into(), 2_u128.into());
}

/// A port with everything a port can have.
fn full_port<F: Family>(vip: F::Ip, balancer: F::Ip, endpoint: F::Ip) -> DesiredPort<F> {
    let mut port = port::<F>("a", vip, endpoint);
    port.frontends.push(DesiredFrontend::node_port(30080));
    port.frontends.push(DesiredFrontend {
        restricted: true,
        ..DesiredFrontend::new(FrontendKind::LoadBalancer, balancer, 80)
    });
    port.source_ranges = Cidr::of(Into::<IpAddr>::into(endpoint).into())
        .into_iter()
        .collect();
    port.affinity = Some(90);
    port
}

fn audits_repair<F: Family>(damage: fn(&mut Tables<F>), [vip, balancer, endpoint]: [F::Ip; 3]) {
    let mut table_sync = table_sync::<F>();
    let desired = vec![full_port::<F>(vip, balancer, endpoint)];
    let desired = BTreeMap::from([(service("a"), desired)]);
    sync(&mut table_sync, &desired, true);
    assert_eq!(audit(&mut table_sync, &desired), 0);
    let before = table_sync.dataplane.tables.clone();
    damage(&mut table_sync.dataplane.tables);
    assert!(
        table_sync.dataplane.tables != before,
        "something is damaged"
    );
    assert_ne!(audit(&mut table_sync, &desired), 0);

    let memory = &table_sync.dataplane;
    let restricted = FrontendKey::new(F::addr(balancer), BePort::new(80), Protocol::TCP);
    let node_port = FrontendKey::node_port(BePort::new(30080), Protocol::TCP);
    for key in [
        FrontendKey::new(F::addr(vip), BePort::new(80), Protocol::TCP),
        node_port,
        restricted,
    ] {
        let right = Resolved::Backends(vec![(endpoint, 8080)]);
        assert_eq!(memory.resolve(&key), right);
    }
    assert!(memory.admits(&restricted, endpoint) && !memory.admits(&restricted, balancer));
    assert_eq!(bits(&memory.tables), bits(&before));
    assert_eq!(memory.tables.source_ranges, before.source_ranges);
    assert_eq!(memory.tables.names, before.names);
    assert_eq!(memory.tables.services[0].session_affinity.seconds, 90);
    assert_eq!(audit(&mut table_sync, &desired), 0);
}

/// Filter and number of each bit that is set.
fn bits<F: Family>(tables: &Tables<F>) -> Vec<(usize, usize)> {
    let filters = tables.filters.iter().enumerate();
    let words = filters.flat_map(|(filter, words)| {
        let words = words.iter().enumerate();
        words.map(move |(index, word)| (filter, index, *word))
    });
    let bits = words.flat_map(|(filter, index, word)| {
        let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
        set.map(move |bit| (filter, index * 64 + bit))
    });
    bits.collect()
}

fn frontends_lost<F: Family>(tables: &mut Tables<F>) {
    tables.frontends.clear();
}

fn sets_lost<F: Family>(tables: &mut Tables<F>) {
    tables.services[0].cluster = SlotRange::drop();
}

fn affinity_off<F: Family>(tables: &mut Tables<F>) {
    tables.services[0].session_affinity = SessionAffinity::NONE;
}

fn backend_dead<F: Family>(tables: &mut Tables<F>) {
    tables.backends[0].flags = 0;
}

fn ranges_lost<F: Family>(tables: &mut Tables<F>) {
    tables.source_ranges.clear();
}

fn range_added<F: Family>(tables: &mut Tables<F>) {
    tables
        .source_ranges
        .insert(RangeKey::new(0, F::Addr::ZERO, 1));
    tables
        .source_ranges
        .insert(RangeKey::new(5, F::Addr::ZERO, 1));
}

fn filter_lost<F: Family, const FILTER: usize>(tables: &mut Tables<F>) {
    tables.filters[FILTER].fill(0);
}

fn name_added<F: Family>(tables: &mut Tables<F>) {
    let name = tables.names[&0].clone();
    tables.names.insert(6, name);
}

macro_rules! audits_repair {
    ($($name:ident($damage:ident $(, $filter:literal)?);)+) => { $(
        #[test]
        fn $name() {
            audits_repair::<V4>(
                $damage::<V4 $(, $filter)?>,
                [[10, 96, 0, 1], [192, 0, 2, 1], [10, 244, 0, 1]].map(Into::into),
            );
            audits_repair::<V6>(
                $damage::<V6 $(, $filter)?>,
                [[0xfd00, 96, 0, 0, 0, 0, 0, 1], [0xfd00, 192, 0, 0, 0, 0, 0, 1],
                 [0xfd00, 244, 0, 0, 0, 0, 0, 1]].map(Into::into),
            );
        }
    )+ };
}

audits_repair! {
    audits_find_lost_frontends(frontends_lost);
    audits_find_lost_sets(sets_lost);
    audits_find_affinity_off(affinity_off);
    audits_find_dead_backends(backend_dead);
    audits_find_lost_ranges(ranges_lost);
    audits_find_added_ranges(range_added);
    audits_find_a_lost_filter_of_frontends(filter_lost, 0);
    audits_find_a_lost_filter_of_backends(filter_lost, 1);
    audits_find_a_lost_filter_of_node_ports(filter_lost, 3);
    audits_find_an_added_name(name_added);
}

#[test]
fn a_complete_sync_removes_what_is_not_listed() {
    let mut table_sync = table_sync::<V4>();
    let (vip, endpoint) = ([10, 96, 0, 1].into(), [10, 244, 0, 1].into());
    let desired = BTreeMap::from([(service("a"), vec![port::<V4>("a", vip, endpoint)])]);
    sync(&mut table_sync, &desired, true);
    sync(&mut table_sync, &BTreeMap::new(), false);
    assert_ne!(resolve(&table_sync, vip), Resolved::NotOurs);
    sync(&mut table_sync, &BTreeMap::new(), true);
    assert_eq!(resolve(&table_sync, vip), Resolved::NotOurs);
}

/// An address may go from a Service to another one at once: nobody is told that
/// it is taken, and no table need have room for both.
fn what_goes_makes_room_for_what_comes<F: Family>(vip: F::Ip, endpoint: F::Ip) {
    let mut table_sync = table_sync::<F>();
    table_sync.dataplane.capacity.frontends = 2;
    table_sync.planner = Planner::new(table_sync.dataplane.capacity);
    let port = |name: &str| vec![port::<F>(name, vip, endpoint)];
    sync(
        &mut table_sync,
        &BTreeMap::from([(service("z"), port("z"))]),
        true,
    );
    let change = BTreeMap::from([(service("a"), port("a")), (service("z"), Vec::new())]);
    let outcome = sync(&mut table_sync, &change, false);
    assert_eq!(outcome.problems, []);
    assert_eq!(
        resolve(&table_sync, vip),
        Resolved::Backends(vec![(endpoint, 8080)])
    );
}

#[test]
fn what_goes_makes_room_for_what_comes_in_both_families() {
    what_goes_makes_room_for_what_comes::<V4>([10, 96, 0, 1].into(), [10, 244, 0, 1].into());
    what_goes_makes_room_for_what_comes::<V6>(1_u128.into(), 2_u128.into());
}

/// Tables that take their time for one write.
struct Slow<F: Family> {
    memory: Memory<F>,
    delay: Option<(Table, Duration)>,
    /// Rows of `BACKENDS` and when they were marked dead.
    retired: BTreeMap<u32, Instant>,
    /// Minimum time between the removal of a row and its next use.
    rest: Option<Duration>,
}

impl<F: Family> Dataplane<F> for Slow<F> {
    type Error = crate::plan::memory::Failed;

    fn capacity(&self) -> Capacity {
        self.memory.capacity
    }

    fn read(&self) -> Result<Tables<F>, Self::Error> {
        self.memory.read()
    }

    fn visit_flows(&self, visit: &mut dyn FnMut(&FlowEnds<F::Addr>)) -> Result<(), Self::Error> {
        self.memory.visit_flows(visit)
    }

    fn write(&mut self, write: &Write<F>) -> Result<(), Self::Error> {
        if let Some((_, delay)) = self.delay.take_if(|(table, _)| *table == write.table()) {
            std::thread::sleep(delay);
        }
        match write {
            Write::BackendState { row, flags: 0, .. } => {
                self.retired.insert(*row, Instant::now());
            }
            Write::Backend { row, .. } => {
                let rest = self.retired.get(row).map(Instant::elapsed);
                self.rest = self.rest.into_iter().chain(rest).min();
            }
            _ => {}
        }
        self.memory.write(write)
    }
}

/// The rows of what a long sync removed last rest as long as those of what it
/// removed first (E31).
fn rows_rest_after_a_long_sync<F: Family>(vip: F::Ip, endpoint: F::Ip) {
    let memory = table_sync::<F>().dataplane;
    let mut table_sync = TableSync::new(Slow {
        memory,
        delay: None,
        retired: BTreeMap::new(),
        rest: None,
    })
    .expect("memory can be read");
    let port = |name: &str| vec![port::<F>(name, vip, endpoint)];
    let before = BTreeMap::from([(service("a"), port("a")), (service("b"), port("b"))]);
    sync(&mut table_sync, &before, true);
    table_sync.dataplane.delay = Some((Table::Frontends, GRACE));
    let gone = BTreeMap::from([(service("a"), Vec::new()), (service("b"), Vec::new())]);
    sync(&mut table_sync, &gone, false);
    for name in ["c", "d"] {
        let next = BTreeMap::from([(service(name), port(name))]);
        sync(&mut table_sync, &next, false);
    }
    let rest = table_sync.dataplane.rest;
    assert!(rest.is_none_or(|rest| rest >= GRACE), "{rest:?}");
}

#[test]
fn rows_rest_after_a_long_sync_in_both_families() {
    rows_rest_after_a_long_sync::<V4>([10, 96, 0, 1].into(), [10, 244, 0, 1].into());
    rows_rest_after_a_long_sync::<V6>(1_u128.into(), 2_u128.into());
}
