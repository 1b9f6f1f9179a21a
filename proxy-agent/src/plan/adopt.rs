//! Takes over tables that were found in the kernel.

use std::collections::BTreeMap;

use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::Frontend,
    service::{SessionAffinity, SlotRange},
};

use crate::{
    model::ServicePortName,
    plan::{
        Planner,
        backends::Row,
        claims::{Claim, Wanted},
        is_address,
        place::{Placed, Port},
        write::{Capacity, Tables},
    },
};

impl<F: Family> Planner<F> {
    /// A planner for tables in any state, also one that no agent of ours would
    /// leave: what cannot be made sense of counts as free and is written anew.
    pub fn adopt(capacity: Capacity, tables: &Tables<F>) -> Self {
        let mut planner = Self::new(capacity);
        planner.filters.adopt(&tables.filters);
        planner.source_ranges.clone_from(&tables.source_ranges);
        planner.generations = tables
            .backends
            .iter()
            .map(|backend| backend.generation)
            .collect();
        let mut owners = BTreeMap::new();
        for (&row, name) in &tables.names {
            if !planner.ports.contains_key(name) && planner.rows.take_at(row, 1) {
                owners.insert(row, name.clone());
                planner.ports.insert(name.clone(), Box::new(Port::at(row)));
            } else {
                planner.orphans.names.push(row);
            }
        }
        planner.adopt_backends(tables, &owners);
        planner.adopt_sets(tables, &owners);
        planner.adopt_frontends(tables, &owners);
        planner
    }

    fn adopt_backends(&mut self, tables: &Tables<F>, owners: &BTreeMap<u32, ServicePortName>) {
        for (index, backend) in (0_u32..).zip(&tables.backends) {
            let row = Row {
                index,
                flags: backend.flags,
                epoch: backend.epoch,
            };
            let endpoint = (F::ip(backend.addr), backend.port.get());
            let owner = owners.get(&backend.service);
            match owner.and_then(|name| self.ports.get_mut(name)) {
                Some(port)
                    if row.flags & Backend::<F::Addr>::USED != 0
                        && !port.backends.contains_key(&endpoint)
                        && self.backends.take_at(index, 1) =>
                {
                    port.backends.insert(endpoint, row);
                }
                _ if row.flags != 0 => self.orphans.backends.push(row),
                _ => {}
            }
        }
    }

    fn adopt_sets(&mut self, tables: &Tables<F>, owners: &BTreeMap<u32, ServicePortName>) {
        for (&row, name) in owners {
            let (Some(service), Some(port)) =
                (tables.services.get(row as usize), self.ports.get_mut(name))
            else {
                continue;
            };
            let mut adopt = |range: SlotRange| -> Placed {
                let backends = (range.first as usize)
                    .checked_add(range.count as usize)
                    .and_then(|end| tables.slots.get(range.first as usize..end));
                match backends {
                    _ if range.count == 0 => Placed {
                        range,
                        backends: Vec::new(),
                    },
                    Some(backends) if self.slots.take_at(range.first, range.count) => Placed {
                        range,
                        backends: backends.to_vec(),
                    },
                    _ => Placed::unknown(),
                }
            };
            port.cluster = adopt(service.cluster);
            port.local = adopt(service.local);
            port.session_affinity = service.session_affinity;
        }
    }

    fn adopt_frontends(&mut self, tables: &Tables<F>, owners: &BTreeMap<u32, ServicePortName>) {
        for (key, frontend) in &tables.frontends {
            self.frontends.insert(*key, *frontend);
            if is_address(key) || frontend.service == Frontend::NO_SERVICE {
                continue;
            }
            if let Some(name) = owners.get(&frontend.service)
                && name.protocol == key.protocol
                && let Some(port) = self.ports.get_mut(name)
            {
                port.frontends.push(*key);
                let wanted = Wanted {
                    flags: frontend.flags,
                    kind: frontend.kind,
                };
                self.claims.insert(*key, Claim::of(name.clone(), wanted));
            }
        }
    }
}

impl<F: Family> Port<F> {
    fn at(row: u32) -> Self {
        Self {
            row,
            cluster: Placed::unknown(),
            local: Placed::unknown(),
            session_affinity: SessionAffinity::NONE,
            backends: BTreeMap::new(),
            frontends: Vec::new(),
        }
    }
}

impl Placed {
    /// A set whose range cannot be trusted; equal to no set that is wanted.
    fn unknown() -> Self {
        Self {
            range: SlotRange {
                first: u32::MAX,
                count: 0,
            },
            backends: Vec::new(),
        }
    }
}
