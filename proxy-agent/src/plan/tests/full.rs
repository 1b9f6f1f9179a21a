//! Tables that are too small for what they should hold.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    Capacity, Planner, Problem,
    answers::{assert_serves, expected},
    cluster::{Cluster, TestFamily, desired, service_key},
    memory::{Memory, Resolved},
};

const SMALL: Capacity = Capacity {
    frontends: 10,
    services: 6,
    slots: 24,
    backends: 16,
    source_ranges: 4,
};

/// Services for which there was no room are tried again, and those alone. Once
/// there are none, all are served; until then, no frontend leads to nowhere.
pub(super) fn all_are_served_once_none_is_too_many<F: TestFamily>(clusters: Vec<Cluster>) {
    let mut planner = Planner::<F>::new(SMALL);
    let mut memory = Memory::new(SMALL);
    let mut now = Instant::now();
    let mut before = Cluster::new();
    let mut due = BTreeSet::new();
    for after in clusters {
        let numbers = before.keys().chain(after.keys()).copied();
        due.extend(numbers.filter(|number| before.get(number) != after.get(number)));
        for _ in 0..4 {
            for number in std::mem::take(&mut due) {
                let ports = after.get(&number).map(|shape| desired(number, shape));
                let plan = planner.update(&service_key(number), &ports.unwrap_or_default(), now);
                for write in &plan.writes {
                    memory.write(write).expect("no table has more than fits");
                    for key in expected::<F>(&before).keys() {
                        assert_ne!(memory.resolve(key), Resolved::Broken, "after {write:?}");
                    }
                }
                let full = plan
                    .problems
                    .iter()
                    .filter(|problem| matches!(problem, Problem::TableFull { .. }));
                let again = full.map(|problem| problem.port().service.clone());
                let again: BTreeSet<_> = again.collect();
                due.extend((0..6).filter(|number| again.contains(&service_key(*number))));
            }
            now += Duration::from_secs(2);
        }
        if due.is_empty() {
            assert_serves(&memory, &after);
        }
        before = after;
    }
}
