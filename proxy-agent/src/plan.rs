//! Plans the writes that make the tables serve each Service port as desired.
//!
//! Pure: the planner keeps a mirror of one family's tables and returns the
//! writes that bring them to the desired state, in an order in which every
//! step leaves working tables behind:
//!
//! 1. new backends, slots and source ranges, where no program looks yet;
//! 2. one store per set of backends, which puts them in force;
//! 3. frontends, new ones before the end of old ones;
//! 4. what is no longer reached is marked dead and kept unused for a while.
//!
//! If a write fails, the mirror is ahead of the tables. The caller then reads
//! them back ([`Planner::adopt`]) and plans everything again; the same happens
//! when an agent starts on tables that another one left.

pub(crate) mod adopt;
pub(crate) mod alloc;
mod backends;
mod claims;
pub(crate) mod filter;
#[cfg(any(test, feature = "test-programs"))]
pub mod memory;
mod place;
mod problem;
mod ranges;
pub mod write;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use proxy_common::{
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::{Address, Protocol},
};

pub use self::problem::Problem;
use self::{backends::Row, claims::Claim, filter::Filters, place::Port, problem::Full};
use crate::{
    model::{ObjectKey, ServicePortName},
    plan::{
        alloc::Allocator,
        write::{Capacity, RangeKey, Write},
    },
    select::DesiredPort,
};

/// Writes in the order to do them, and what could not be planned.
#[derive(Clone, Debug)]
pub struct Plan<F: Family> {
    pub writes: Vec<Write<F>>,
    pub problems: Vec<Problem>,
}

impl<F: Family> Default for Plan<F> {
    fn default() -> Self {
        Self {
            writes: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// One family's tables as they will be when all planned writes are done.
#[derive(Clone, Debug)]
pub struct Planner<F: Family> {
    capacity: Capacity,
    rows: Allocator,
    slots: Allocator,
    backends: Allocator,
    /// Last generation of each row of `BACKENDS`.
    generations: Vec<u32>,
    orphans: Orphans,
    /// Boxed, because the nodes of a map are half empty.
    ports: BTreeMap<ServicePortName, Box<Port<F>>>,
    claims: BTreeMap<FrontendKey<F::Addr>, Claim>,
    frontends: BTreeMap<FrontendKey<F::Addr>, Frontend>,
    source_ranges: BTreeSet<RangeKey<F::Addr>>,
    filters: Filters,
}

/// Rows that were found in use, but by no port.
#[derive(Clone, Debug, Default)]
struct Orphans {
    names: Vec<u32>,
    backends: Vec<Row>,
}

impl<F: Family> Planner<F> {
    /// Plans for empty tables.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            rows: Allocator::new(capacity.services),
            slots: Allocator::new(capacity.slots),
            backends: Allocator::new(capacity.backends),
            generations: Vec::new(),
            orphans: Orphans::default(),
            ports: BTreeMap::new(),
            claims: BTreeMap::new(),
            frontends: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            filters: Filters::empty(),
        }
    }

    /// Services that have anything in the tables.
    pub fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        let services = self.ports.keys().map(|name| &name.service);
        let mut last = None;
        services.filter(move |service| last.replace(*service) != Some(*service))
    }

    /// Returns whether the Service has anything in the tables.
    pub fn holds(&self, service: &ObjectKey) -> bool {
        self.ports_of(service).next().is_some()
    }

    /// Plans the change of one Service to `desired`, all of its ports. The writes of earlier
    /// plans must have been done.
    pub fn update(
        &mut self,
        service: &ObjectKey,
        desired: &[DesiredPort<F>],
        now: Instant,
    ) -> Plan<F> {
        let mut plan = Plan::default();
        self.rows.settle(now);
        self.slots.settle(now);
        self.backends.settle(now);

        let mut touched = BTreeSet::new();
        let mut placed = Vec::new();
        let mut leaving = Vec::new();
        let mut after = Vec::new();
        for port in desired {
            match self.place(port, &mut plan) {
                Ok(left) => {
                    placed.push(port);
                    leaving.extend(left.backends);
                    after.extend(left.after);
                }
                Err(Full { table, capacity }) => plan.problems.push(Problem::TableFull {
                    port: port.name.clone(),
                    table,
                    capacity,
                }),
            }
        }
        let gone = self.gone(service, desired);
        for name in &gone {
            touched.extend(self.release(name));
        }
        for port in placed {
            touched.extend(self.claim(port, &mut plan));
        }
        self.settle_claims(touched, &mut plan);
        self.forget_ranges(&after);
        plan.writes.append(&mut after);
        for row in leaving {
            self.retire(row, &mut plan);
        }
        for name in gone {
            self.remove(&name, &mut plan);
        }
        for port in desired {
            self.report_taken(&port.name, &mut plan);
        }
        plan
    }

    /// Plans the removal of all that no Service port wants. Only adopted tables
    /// have any.
    pub fn remove_orphans(&mut self) -> Plan<F> {
        let mut plan = Plan::default();
        self.remove_stray_frontends(&mut plan);
        let orphans = std::mem::take(&mut self.orphans);
        self.retire_orphans(orphans.backends, &mut plan);
        let rows: BTreeSet<_> = self.ports.values().map(|port| port.row).collect();
        self.remove_stray_ranges(&rows, &mut plan);
        let names = orphans.names.into_iter();
        let names = names.filter(|row| !rows.contains(row));
        plan.writes
            .extend(names.map(|row| Write::DeleteName { row }));
        plan
    }

    /// Ports of the Service in the tables.
    fn ports_of<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = &'a ServicePortName> {
        let first = ServicePortName {
            service: service.clone(),
            port: "".into(),
            protocol: Protocol(0),
        };
        let names = self.ports.range(first..).map(|(name, _)| name);
        names.take_while(move |name| name.service == *service)
    }

    /// Ports of the Service that are not desired any more.
    fn gone(&self, service: &ObjectKey, desired: &[DesiredPort<F>]) -> Vec<ServicePortName> {
        self.ports_of(service)
            .filter(|name| desired.iter().all(|port| port.name != **name))
            .cloned()
            .collect()
    }

    /// Removes a port that has no frontend any more.
    fn remove(&mut self, name: &ServicePortName, plan: &mut Plan<F>) {
        let Some(port) = self.ports.remove(name) else {
            return;
        };
        self.remove_ranges(port.row, plan);
        for row in port.backends.into_values() {
            self.retire(row, plan);
        }
        for placed in [port.cluster, port.local] {
            self.slots.retire(placed.range.first, placed.range.count);
        }
        plan.writes.push(Write::DeleteName { row: port.row });
        self.rows.retire(port.row, 1);
    }
}

/// Returns whether it is the entry of an address itself.
fn is_address<A: Address>(key: &FrontendKey<A>) -> bool {
    *key == FrontendKey::address(key.addr)
}
