//! A Service port's place in the tables: its row, and the sets its backends
//! form.

use std::collections::BTreeMap;

use proxy_common::{
    family::Family,
    frontend::FrontendKey,
    service::{Service, SessionAffinity, SlotRange},
    table::Table,
};

use crate::{
    model::ServicePortName,
    plan::{
        Plan, Planner,
        backends::{Fresh, Row},
        problem::Full,
        write::{Set, Write},
    },
    select::{DesiredPort, EndpointUse, WhenEmpty},
};

/// A Service port in the tables.
#[derive(Clone, Debug)]
pub(super) struct Port<F: Family> {
    pub(super) row: u32,
    pub(super) cluster: Placed,
    pub(super) local: Placed,
    pub(super) session_affinity: SessionAffinity,
    pub(super) backends: BTreeMap<(F::Ip, u16), Row>,
    /// In ascending order.
    pub(super) frontends: Vec<FrontendKey<F::Addr>>,
}

/// A set of backends in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) range: SlotRange,
    /// Rows of `BACKENDS` in the slots of `range`.
    pub(super) backends: Vec<u32>,
}

/// The remaining work of a change, for when the port's frontends are written.
pub(super) struct Left<F: Family> {
    /// Backends that the port no longer has, still marked alive.
    pub(super) backends: Vec<Row>,
    /// Stores to sets that no frontend uses any more: a frontend that
    /// switches from one set to the other finds the new one ready and the old
    /// one untouched. For the same reason marks of backends that left a set,
    /// and source ranges that go.
    pub(super) after: Vec<Write<F>>,
}

impl<F: Family> Planner<F> {
    /// Puts row, backends and sets of a port in place.
    pub(super) fn place(
        &mut self,
        desired: &DesiredPort<F>,
        plan: &mut Plan<F>,
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
            fresh.get(endpoint).map(|(row, _)| row.index).or_else(|| {
                let port = self.ports.get(&desired.name)?;
                Some(port.backends.get(endpoint)?.index)
            })
        };
        let members = |member: fn(&EndpointUse) -> bool| -> Vec<u32> {
            let endpoints = desired.endpoints.iter();
            let mut rows: Vec<_> = endpoints
                .filter(|(_, used)| member(used))
                .filter_map(|(endpoint, _)| row_of(endpoint))
                .collect();
            rows.shrink_to_fit();
            rows
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
        let sets = wanted.into_iter().try_for_each(|(set, backends, empty)| {
            let new = self.place_set(&desired.name, set, backends, empty)?;
            placed.push((set, new));
            Ok(())
        });
        if let Err(problem) = sets.and_then(|()| self.check_ranges(desired, row)) {
            for Placed { range, .. } in placed.into_iter().filter_map(|(_, new)| new) {
                self.slots.put_back(range.first, range.count);
            }
            self.put_back_backends(&fresh);
            if !known {
                self.rows.put_back(row, 1);
            }
            return Err(problem);
        }
        Ok(self.commit(desired, row, fresh, placed, plan))
    }

    /// Writes what [`Planner::place`] found room for.
    fn commit(
        &mut self,
        desired: &DesiredPort<F>,
        row: u32,
        fresh: Fresh<F>,
        placed: Vec<(Set, Option<Placed>)>,
        plan: &mut Plan<F>,
    ) -> Left<F> {
        let known = self.ports.contains_key(&desired.name);
        self.write_fresh(desired, &fresh, plan);
        for (_, new) in &placed {
            if let Some(Placed { range, backends }) = new
                && range.count > 0
            {
                plan.writes.push(Write::Slots {
                    first: range.first,
                    backends: backends.clone(),
                });
            }
        }
        let mut left = Left {
            backends: Vec::new(),
            after: self.place_ranges(desired, row, plan),
        };
        let port = self.ports.entry(desired.name.clone()).or_insert_with(|| {
            Box::new(Port {
                row,
                cluster: Placed::nowhere(),
                local: Placed::nowhere(),
                session_affinity: SessionAffinity::NONE,
                backends: BTreeMap::new(),
                frontends: Vec::new(),
            })
        });
        left.after.append(&mut port.mark_backends(desired, plan));
        for (set, new) in placed {
            let Some(new) = new else { continue };
            let current = port.set_mut(set);
            self.slots.retire(current.range.first, current.range.count);
            if known {
                let range = new.range;
                let store = Write::SlotRange { row, set, range };
                if is_used(desired, set) {
                    plan.writes.push(store);
                } else {
                    left.after.push(store);
                }
            }
            *current = new;
        }
        let session_affinity = session_affinity(port.session_affinity, desired.affinity);
        if known && port.session_affinity != session_affinity {
            plan.writes.push(Write::SessionAffinity {
                row,
                session_affinity,
            });
        }
        port.session_affinity = session_affinity;
        if !known {
            plan.writes.push(Write::Service {
                row,
                service: Service {
                    cluster: port.cluster.range,
                    local: port.local.range,
                    session_affinity,
                },
            });
            plan.writes.push(Write::Name {
                row,
                name: desired.name.clone(),
            });
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
            table: Table::Services,
            capacity: self.capacity.services,
        })
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
        let range = if backends.is_empty() {
            match empty {
                WhenEmpty::Reject => SlotRange::reject(),
                WhenEmpty::Drop => SlotRange::drop(),
            }
        } else if let Some(current) = current
            && current.backends == backends
        {
            current.range
        } else {
            let full = Full {
                table: Table::Slots,
                capacity: self.capacity.slots,
            };
            let count = u32::try_from(backends.len()).map_err(|_| full)?;
            let Some(first) = self.slots.take(count) else {
                return Err(full);
            };
            SlotRange { first, count }
        };
        let new = Placed { range, backends };
        Ok((current != Some(&new)).then_some(new))
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
            range: SlotRange::reject(),
            backends: Vec::new(),
        }
    }
}

/// Returns whether any frontend of the port uses the set.
fn is_used<F: Family>(desired: &DesiredPort<F>, set: Set) -> bool {
    desired.frontends.iter().any(|frontend| match set {
        Set::Cluster => frontend.uses_cluster_set(),
        Set::Local => frontend.local_set,
    })
}

/// Session affinity that was `current` and shall be `affinity`. Clients that
/// were remembered before it was switched off are not after it is switched on
/// again (S75).
fn session_affinity(current: SessionAffinity, affinity: Option<u32>) -> SessionAffinity {
    let seconds = affinity.unwrap_or(0);
    let switched_on = current.seconds == 0 && seconds != 0;
    SessionAffinity {
        seconds,
        round: current.round.wrapping_add(u32::from(switched_on)),
    }
}
