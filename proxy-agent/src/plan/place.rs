//! A Service port's place in the tables: its row, its backends, and the sets
//! they form.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::FrontendKey,
    net::BePort,
    prefilter,
    service::{Run, Service, Stickiness},
};

use crate::{
    model::ServicePortName,
    plan::{
        Plan, Planner,
        problem::Full,
        write::{Set, Write},
    },
    select::{DesiredPort, EndpointUse, WhenEmpty},
};

/// Rows that were taken for endpoints, with what to write into them.
type Fresh<F> = BTreeMap<(<F as Family>::Ip, u16), (Row, Backend<<F as Family>::Addr>)>;

/// A Service port in the tables.
#[derive(Clone, Debug)]
pub(super) struct Port<F: Family> {
    pub(super) row: u32,
    pub(super) cluster: Placed,
    pub(super) local: Placed,
    pub(super) backends: BTreeMap<(F::Ip, u16), Row>,
    pub(super) frontends: BTreeSet<FrontendKey<F::Addr>>,
}

/// Where a set of backends stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) run: Run,
    /// What the slots of `run` hold.
    pub(super) backends: Vec<u32>,
}

/// What a change of a port leaves for the end of the plan.
pub(super) struct Left<F: Family> {
    /// Backends that the port no longer has, still marked alive.
    pub(super) backends: Vec<Row>,
    /// Stores to sets that no front end uses any more. A front end that
    /// switches from one set to the other finds the new one ready and the old
    /// one untouched.
    pub(super) unused_sets: Vec<Write<F>>,
}

/// A row of `BACKENDS`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) row: u32,
    pub(super) flags: u8,
}

impl<F: Family> Planner<F> {
    /// Puts row, backends and sets of a port in place.
    pub(super) fn place(
        &mut self,
        desired: &DesiredPort<F>,
        plan: &mut Plan<F>,
        now: Instant,
    ) -> Result<Left<F>, Full> {
        let known = self.ports.contains_key(&desired.name);
        let row = match self.ports.get(&desired.name) {
            Some(port) => port.row,
            None => self.take_row()?,
        };
        let fresh = match self.take_backends(desired, row) {
            Ok(fresh) => fresh,
            Err(problem) => {
                if !known {
                    self.rows.put_back(row, 1);
                }
                return Err(problem);
            }
        };
        let row_of = |endpoint: &(F::Ip, u16)| {
            fresh.get(endpoint).map(|(row, _)| row.row).or_else(|| {
                let port = self.ports.get(&desired.name)?;
                Some(port.backends.get(endpoint)?.row)
            })
        };
        let members = |member: fn(&EndpointUse) -> bool| -> Vec<u32> {
            desired
                .endpoints
                .iter()
                .filter(|(_, used)| member(used))
                .filter_map(|(endpoint, _)| row_of(endpoint))
                .collect()
        };
        let wanted = [
            (
                Set::Cluster,
                members(|used| used.cluster),
                desired.cluster_empty,
            ),
            (Set::Local, members(|used| used.local), desired.local_empty),
        ];
        let mut placed = Vec::new();
        for (set, backends, empty) in wanted {
            match self.place_set(&desired.name, set, backends, empty) {
                Ok(new) => placed.push((set, new)),
                Err(problem) => {
                    for (_, new) in placed {
                        if let Some(Placed { run, .. }) = new {
                            self.slots.put_back(run.first, run.count);
                        }
                    }
                    for (row, _) in fresh.values() {
                        self.backends.put_back(row.row, 1);
                    }
                    if !known {
                        self.rows.put_back(row, 1);
                    }
                    return Err(problem);
                }
            }
        }
        Ok(self.commit(desired, row, fresh, placed, plan, now))
    }

    /// Writes what [`Planner::place`] found room for.
    fn commit(
        &mut self,
        desired: &DesiredPort<F>,
        row: u32,
        fresh: Fresh<F>,
        placed: Vec<(Set, Option<Placed>)>,
        plan: &mut Plan<F>,
        now: Instant,
    ) -> Left<F> {
        let mut left = Left {
            backends: Vec::new(),
            unused_sets: Vec::new(),
        };
        let protocol = desired.name.protocol;
        for (row, backend) in fresh.values() {
            let bit = prefilter::backend_bit(&backend.addr, backend.port, protocol);
            self.set_filter(prefilter::BACKENDS, bit, plan);
            self.generations[row.row as usize] = backend.generation;
            plan.writes.push(Write::Backend {
                row: row.row,
                backend: *backend,
            });
        }
        for (_, new) in &placed {
            if let Some(Placed { run, backends }) = new
                && run.count > 0
            {
                plan.writes.push(Write::Slots {
                    first: run.first,
                    backends: backends.clone(),
                });
            }
        }
        let known = self.ports.contains_key(&desired.name);
        let port = self
            .ports
            .entry(desired.name.clone())
            .or_insert_with(|| Port {
                row,
                cluster: Placed::nowhere(),
                local: Placed::nowhere(),
                backends: BTreeMap::new(),
                frontends: BTreeSet::new(),
            });
        for (set, new) in placed {
            let Some(new) = new else { continue };
            let current = port.set_mut(set);
            self.slots.retire(current.run.first, current.run.count, now);
            if known {
                let run = new.run;
                let store = Write::Run { row, set, run };
                if is_used(desired, set) {
                    plan.writes.push(store);
                } else {
                    left.unused_sets.push(store);
                }
            }
            *current = new;
        }
        if !known {
            plan.writes.push(Write::Service {
                row,
                service: Service {
                    cluster: port.cluster.run,
                    local: port.local.run,
                    stickiness: Stickiness::NONE,
                },
            });
            plan.writes.push(Write::Name {
                row,
                name: desired.name.clone(),
            });
            self.services
                .entry(desired.name.service.clone())
                .or_default()
                .insert(desired.name.clone());
        }
        for (endpoint, used) in &desired.endpoints {
            if let Some(row) = port.backends.get_mut(endpoint)
                && row.flags != flags(*used)
            {
                row.flags = flags(*used);
                plan.writes.push(Write::BackendFlags {
                    row: row.row,
                    flags: row.flags,
                });
            }
        }
        port.backends.extend(
            fresh
                .into_iter()
                .map(|(endpoint, (row, _))| (endpoint, row)),
        );
        left.backends = port
            .backends
            .extract_if(.., |endpoint, _| !desired.endpoints.contains_key(endpoint))
            .map(|(_, row)| row)
            .collect();
        left
    }

    fn take_row(&mut self) -> Result<u32, Full> {
        self.rows.take(1).ok_or(Full {
            table: "SERVICES",
            capacity: self.capacity.services,
        })
    }

    /// Rows for the endpoints that have none yet; all of them or nothing.
    fn take_backends(&mut self, desired: &DesiredPort<F>, service: u32) -> Result<Fresh<F>, Full> {
        let mut fresh = BTreeMap::new();
        let held = self.ports.get(&desired.name);
        for (&endpoint, used) in &desired.endpoints {
            if held.is_some_and(|port| port.backends.contains_key(&endpoint)) {
                continue;
            }
            let Some(row) = self.backends.take(1) else {
                for (row, _) in fresh.values() {
                    let row: &Row = row;
                    self.backends.put_back(row.row, 1);
                }
                return Err(Full {
                    table: "BACKENDS",
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
            let flags = backend.flags;
            fresh.insert(endpoint, (Row { row, flags }, backend));
        }
        Ok(fresh)
    }

    /// Finds room for a set, unless it stands as it should.
    fn place_set(
        &mut self,
        name: &ServicePortName,
        set: Set,
        backends: Vec<u32>,
        empty: WhenEmpty,
    ) -> Result<Option<Placed>, Full> {
        let current = self.ports.get(name).map(|port| port.set(set));
        let run = if backends.is_empty() {
            match empty {
                WhenEmpty::Reject => Run::reject(),
                WhenEmpty::Drop => Run::drop(),
            }
        } else if let Some(current) = current
            && current.backends == backends
        {
            current.run
        } else {
            let full = Full {
                table: "SLOTS",
                capacity: self.capacity.slots,
            };
            let count = u32::try_from(backends.len()).map_err(|_| full)?;
            let Some(first) = self.slots.take(count) else {
                return Err(full);
            };
            Run { first, count }
        };
        let new = Placed { run, backends };
        Ok((current != Some(&new)).then_some(new))
    }

    /// Marks a backend dead and lets its row rest.
    pub(super) fn bury(&mut self, row: Row, plan: &mut Plan<F>, now: Instant) {
        plan.writes.push(Write::BackendFlags {
            row: row.row,
            flags: 0,
        });
        self.backends.retire(row.row, 1, now);
    }
}

impl<F: Family> Port<F> {
    fn set(&self, set: Set) -> &Placed {
        match set {
            Set::Cluster => &self.cluster,
            Set::Local => &self.local,
        }
    }

    fn set_mut(&mut self, set: Set) -> &mut Placed {
        match set {
            Set::Cluster => &mut self.cluster,
            Set::Local => &mut self.local,
        }
    }
}

impl Placed {
    /// A set that stands nowhere: what a new row of `SERVICES` holds.
    fn nowhere() -> Self {
        Self {
            run: Run::reject(),
            backends: Vec::new(),
        }
    }
}

/// Whether any front end of the port uses the set.
fn is_used<F: Family>(desired: &DesiredPort<F>, set: Set) -> bool {
    desired
        .frontends
        .iter()
        .any(|frontend| frontend.local_set == (set == Set::Local))
}

/// Flags byte of a backend that is used like this.
fn flags(used: EndpointUse) -> u8 {
    // The constants do not depend on the address type.
    type AnyBackend = Backend<proxy_common::net::AddrV4>;
    if used.serving {
        AnyBackend::USED | AnyBackend::SERVING
    } else {
        AnyBackend::USED
    }
}
