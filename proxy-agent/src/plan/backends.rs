//! A Service port's endpoints in `BACKENDS`.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::{backend::Backend, family::Family, net::BePort, table::Table};

use crate::{
    plan::{Plan, Planner, place::Port, problem::Full, write::Write},
    select::{DesiredPort, EndpointUse},
};

/// Rows that were taken for endpoints, with what to write into them.
pub(super) type Fresh<F> = BTreeMap<(<F as Family>::Ip, u16), (Row, Backend<<F as Family>::Addr>)>;

/// The constants do not depend on the address type.
type AnyBackend = Backend<proxy_common::net::AddrV4>;

/// A row of `BACKENDS`, with what changes in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) index: u32,
    pub(super) flags: u8,
    pub(super) epoch: u8,
}

impl<F: Family> Planner<F> {
    /// Rows for the endpoints that have none yet; all of them or nothing.
    pub(super) fn take_backends(
        &mut self,
        desired: &DesiredPort<F>,
        service: u32,
    ) -> Result<Fresh<F>, Full> {
        let mut fresh = Fresh::<F>::new();
        let held = self.ports.get(&desired.name);
        for (&endpoint, used) in &desired.endpoints {
            if held.is_some_and(|port| port.backends.contains_key(&endpoint)) {
                continue;
            }
            let Some(row) = self.backends.take(1) else {
                self.put_back_backends(&fresh);
                return Err(Full {
                    table: Table::Backends,
                    capacity: self.capacity.backends,
                });
            };
            if self.generations.len() <= row as usize {
                self.generations.resize(row as usize + 1, 0);
            }
            let (ip, port) = endpoint;
            let backend = Backend {
                addr: F::addr(ip),
                service,
                generation: self.generations[row as usize].wrapping_add(1),
                port: BePort::new(port),
                flags: flags(*used),
                epoch: 0,
            };
            let row = Row {
                index: row,
                flags: backend.flags,
                epoch: backend.epoch,
            };
            fresh.insert(endpoint, (row, backend));
        }
        Ok(fresh)
    }

    /// Gives rows back that were taken for nothing.
    pub(super) fn put_back_backends(&mut self, fresh: &Fresh<F>) {
        for (row, _) in fresh.values() {
            self.backends.put_back(row.index, 1);
        }
    }

    /// Fills the rows that were taken, and makes the filter know all endpoints.
    pub(super) fn write_fresh(
        &mut self,
        desired: &DesiredPort<F>,
        fresh: &Fresh<F>,
        plan: &mut Plan<F>,
    ) {
        for &(ip, port) in desired.endpoints.keys() {
            let (addr, port) = (F::addr(ip), BePort::new(port));
            self.set_backend_bit(&addr, port, desired.name.protocol, plan);
        }
        for (row, backend) in fresh.values() {
            self.generations[row.index as usize] = backend.generation;
            plan.writes.push(Write::Backend {
                row: row.index,
                backend: *backend,
            });
        }
    }

    /// Marks a backend dead and lets its row rest.
    pub(super) fn retire(&mut self, row: Row, plan: &mut Plan<F>) {
        plan.writes.push(row.tombstone());
        self.backends.retire(row.index, 1);
    }

    /// Marks backends dead that were adopted and belong to no port.
    pub(super) fn retire_orphans(&self, orphans: Vec<Row>, plan: &mut Plan<F>) {
        if orphans.is_empty() {
            return;
        }
        let ports = self.ports.values();
        let taken: BTreeSet<_> = ports
            .flat_map(|port| port.backends.values().map(|row| row.index))
            .collect();
        let orphans = orphans
            .into_iter()
            .filter(|row| !taken.contains(&row.index));
        plan.writes.extend(orphans.map(Row::tombstone));
    }
}

impl<F: Family> Port<F> {
    /// Brings the marks of the endpoints that have rows up to date. Those that
    /// only gain some are marked at once; the stores for the others are
    /// returned, to be done when no set has them any more.
    pub(super) fn mark_backends(
        &mut self,
        desired: &DesiredPort<F>,
        plan: &mut Plan<F>,
    ) -> Vec<Write<F>> {
        let mut later = Vec::new();
        for (endpoint, used) in &desired.endpoints {
            let Some(row) = self.backends.get_mut(endpoint) else {
                continue;
            };
            let before = *row;
            row.mark(flags(*used));
            if *row == before {
                continue;
            }
            let store = row.state();
            if row.flags & before.flags == before.flags {
                plan.writes.push(store);
            } else {
                later.push(store);
            }
        }
        later
    }
}

impl Row {
    fn state<F: Family>(self) -> Write<F> {
        Write::BackendState {
            row: self.index,
            flags: self.flags,
            epoch: self.epoch,
        }
    }

    fn tombstone<F: Family>(self) -> Write<F> {
        Self { flags: 0, ..self }.state()
    }

    /// Clients that were remembered for a backend in no set are forgotten (S74).
    fn mark(&mut self, flags: u8) {
        const SETS: u8 = AnyBackend::CLUSTER | AnyBackend::LOCAL;
        if self.flags & SETS != 0 && flags & SETS == 0 {
            self.epoch = self.epoch.wrapping_add(1);
        }
        self.flags = flags;
    }
}

/// Flags of a backend that is used like this.
fn flags(used: EndpointUse) -> u8 {
    let flag = |set, bit| if set { bit } else { 0 };
    AnyBackend::USED
        | flag(used.serving, AnyBackend::SERVING)
        | flag(used.here, AnyBackend::HERE)
        | flag(used.cluster, AnyBackend::CLUSTER)
        | flag(used.local, AnyBackend::LOCAL)
}
