//! Laws of planning, checked on generated clusters in both families.
#![allow(
    clippy::needless_pass_by_value,
    reason = "laws take the values that were generated for them"
)]

mod answers;
mod cluster;
mod filters;
mod full;
mod junk;
mod memories;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proxy_common::{
    family::{V4, V6},
    net::{BePort, Protocol},
};

use self::{
    answers::{Answer, all_desired, assert_serves, expected},
    cluster::{Cluster, TestFamily, clients, cluster, desired, service_key, small},
    filters::filters_hold_what_tables_and_flows_need,
    full::all_are_served_once_none_is_too_many,
    junk::{Junk, junk},
    memories::Memories,
};
use super::{
    memory::{Memory, Resolved},
    *,
};

const CAPACITY: Capacity = Capacity {
    frontends: 256,
    services: 64,
    slots: 512,
    backends: 512,
    source_ranges: 64,
};

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
    plans.push(planner.remove_orphans());
    for plan in plans {
        for write in &plan.writes {
            memory.write(write).ok()?;
            count += 1;
        }
    }
    Some(count)
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
    a_failed_write_is_made_good(before in cluster(), after in cluster(), fail in 0_usize..80);
    all_are_served_once_none_is_too_many(clusters in prop::collection::vec(cluster(), 1..5));
    any_tables_can_be_adopted(junk in junk(), cluster in cluster());
    clients_are_remembered_until_something_ends_it(
        steps in prop::collection::vec((cluster(), any::<bool>()), 1..6)
    );
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

/// While one Service changes, each of its frontends leads to what it led to
/// before or to what it shall lead to, never to nowhere, and lets in whom it
/// let in before or shall let in.
fn every_step_serves_old_or_new<F: TestFamily>(before: Cluster, after: Cluster) {
    let mut planner = Planner::<F>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let now = Instant::now();
    sync(&mut planner, &mut memory, &before, now).expect("writes succeed");
    let (old, new) = (expected::<F>(&before), expected::<F>(&after));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
    // A frontend that passes from one Service port to another may be absent or
    // shown as either's; one that stays must not be.
    let staying: Vec<_> = keys
        .iter()
        .filter(|key| owner::<F>(&before, key) == owner::<F>(&after, key))
        .filter_map(|key| match (&old.get(key)?[..], &new.get(key)?[..]) {
            ([old], [new]) => Some((key, old, new)),
            _ => None,
        })
        .collect();
    let numbers: BTreeSet<u8> = before.keys().chain(after.keys()).copied().collect();
    for number in numbers {
        let desired = after
            .get(&number)
            .map(|shape| desired(number, shape))
            .unwrap_or_default();
        for write in &planner.update(&service_key(number), &desired, now).writes {
            memory.write(write).expect("writes succeed");
            for key in &keys {
                assert_ne!(memory.resolve(key), Resolved::Broken, "after {write:?}");
                assert_ne!(memory.resolve_here(key), Resolved::Broken);
            }
            for (key, old, new) in &staying {
                assert_old_or_new(&memory, key, old, new, write);
            }
        }
    }
    let orphans = planner.remove_orphans();
    assert_eq!(
        orphans.writes,
        [],
        "nothing but an adopted table has orphans"
    );
    assert_serves(&memory, &after);
}

fn assert_old_or_new<F: TestFamily>(
    memory: &Memory<F>,
    key: &FrontendKey<F::Addr>,
    old: &Answer<F>,
    new: &Answer<F>,
    write: &Write<F>,
) {
    // A frontend that goes from one set to the other, while another needs the
    // first one changed, may see that change.
    let mut right = vec![&old.bound, &new.bound, &old.here, &new.here];
    if (old.kind, old.local_set) != (new.kind, new.local_set) {
        right.extend(old.sets.iter().chain(&new.sets));
    }
    for actual in [memory.resolve(key), memory.resolve_here(key)] {
        assert!(
            right.contains(&&actual),
            "{key:?}: {actual:?} after {write:?}"
        );
    }
    for (index, client) in clients::<F>().enumerate() {
        let admitted = memory.admits(key, client);
        assert!(
            admitted == old.admitted[index] || admitted == new.admitted[index],
            "{key:?}: {client} after {write:?}"
        );
    }
}

/// The Service port that wants a frontend, where only one does.
fn owner<F: TestFamily>(cluster: &Cluster, key: &FrontendKey<F::Addr>) -> Option<ServicePortName> {
    let wants = |port: &DesiredPort<F>| {
        let mut frontends = port.frontends.iter();
        frontends.any(|frontend| frontend.key(port.name.protocol) == *key)
    };
    let owner = all_desired::<F>(cluster).into_iter().find(wants);
    owner.map(|port| port.name)
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

fn any_tables_can_be_adopted<F: TestFamily>(junk: Junk, cluster: Cluster) {
    let mut memory = Memory::<F>::new(CAPACITY);
    memory.tables = junk.tables();
    let mut planner = Planner::<F>::adopt(CAPACITY, &memory.tables);
    sync(&mut planner, &mut memory, &cluster, Instant::now()).expect("writes succeed");
    assert_serves(&memory, &cluster);
}

/// S74, S75: an entry of `AFFINITY` counts as long as affinity stays on and the
/// endpoint stays in one of the sets, whatever agent made the changes.
fn clients_are_remembered_until_something_ends_it<F: TestFamily>(steps: Vec<(Cluster, bool)>) {
    let mut planner = Planner::<F>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let mut memories = Memories::default();
    let mut now = Instant::now();
    for (cluster, adopt) in steps {
        if adopt {
            planner = Planner::adopt(CAPACITY, &memory.tables);
        }
        sync(&mut planner, &mut memory, &cluster, now).expect("writes succeed");
        let ports = all_desired::<F>(&cluster);
        memories.forget(&ports);
        memories.assert_counted(&memory.tables);
        memories.remember(&ports, &memory.tables);
        now += Duration::from_secs(2);
    }
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
        [
            "table BACKENDS is full (10 entries): default/service-2:p80 stays as it was; \
          start the agent with a larger --max-endpoints, which harms no flow"
        ]
    );
    assert_serves(&memory, &first);
    // Room that the first one gives up is the second one's after the grace.
    let plan = planner.update(&service_key(1), &[], now);
    plan.writes
        .iter()
        .for_each(|write| memory.write(write).expect("writes succeed"));
    // It begins when the writes are done, which the next change shows.
    planner.update(&service_key(1), &[], now);
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

/// Anybody may write another Service's address into externalIPs.
#[test]
fn a_cluster_ip_cannot_be_taken_over() {
    use crate::select::FrontendKind;

    let mut planner = Planner::<V4>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    let now = Instant::now();
    let (number, mut thief) = small(1, 3);
    thief.other = Some((FrontendKind::ExternalIp, 2));
    let first = Cluster::from([(number, thief.clone())]);
    sync(&mut planner, &mut memory, &first, now).expect("writes succeed");
    let vip = FrontendKey::new(V4::addr(V4::nth(96, 2)), BePort::new(80), Protocol::TCP);
    assert!(matches!(memory.resolve(&vip), Resolved::Backends(b) if b.len() == 3));

    let (_, shape) = small(2, 5);
    let plan = planner.update(&service_key(2), &desired(2, &shape), now);
    plan.writes
        .iter()
        .for_each(|write| memory.write(write).expect("writes succeed"));
    let problems: Vec<_> = plan.problems.iter().map(Problem::to_string).collect();
    let expected = "10.96.0.2:80 of default/service-1:p80 already belongs to \
        default/service-2:p80, which keeps it";
    assert_eq!(problems, [expected]);
    assert!(matches!(memory.resolve(&vip), Resolved::Backends(b) if b.len() == 5));
    // Nor after a restart, when the thief comes first.
    let both = Cluster::from([(1, thief), (2, shape)]);
    let mut planner = Planner::<V4>::new(CAPACITY);
    let mut memory = Memory::new(CAPACITY);
    sync(&mut planner, &mut memory, &both, now).expect("writes succeed");
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
        .filter(|write| matches!(write, Write::SlotRange { .. }))
        .count();
    assert_eq!(stores, 1);
    assert!(
        !writes
            .iter()
            .any(|write| matches!(write, Write::Frontend { .. }))
    );
}
