//! A family's tables as those that plans are made for and written to.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
};

use proxy_common::{
    backend::Backend,
    flow::{Flow, FlowKey},
    prefilter,
    service::{Service, SessionAffinity, Slot, SlotRange},
    table::Table,
};

use super::{
    KernelFamily, KernelTables, MATCHES, TableError, gone,
    open::table_name,
    stored::{range_bits, read_name, read_range, session_affinity_bits, write_name, write_range},
};
use crate::{
    dataplane::{Dataplane, mapped::Mapped},
    plan::{
        filter::FlowEnds,
        write::{Capacity, Set, Tables, Write},
    },
};

impl<F: KernelFamily> Dataplane<F> for KernelTables<F> {
    type Error = TableError;

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn read(&self) -> Result<Tables<F>, TableError> {
        let read_error = |table: Table| {
            let table = table_name::<F>(table);
            move |source| TableError::Read { table, source }
        };
        let frontends = self
            .frontends
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.into(), value)))
            .collect::<Result<BTreeMap<_, _>, _>>()
            .map_err(read_error(Table::Frontends))?;
        let names = self
            .names
            .iter()
            .map(|entry| entry.map(|(row, name)| (row, read_name(&name))))
            .collect::<Result<BTreeMap<_, _>, _>>()
            .map_err(read_error(Table::Names))?;
        let source_ranges = self
            .source_ranges
            .keys()
            .map(|key| key.map(|key| read_range::<F>(&key)))
            .collect::<Result<BTreeSet<_>, _>>()
            .map_err(read_error(Table::SourceRanges))?;
        let words = |filter| {
            self.filters
                .get(filter)
                .map(|filter| filter.words.to_vec())
                .unwrap_or_default()
        };
        let mut services = used(&self.services, |service| {
            *service != Service::FREE && *service != ZERO
        });
        // A port without any backend has the same row as nobody.
        let owned = names.last_key_value().map_or(0, |(row, _)| row + 1);
        let found = services.len().try_into().unwrap_or(u32::MAX);
        services.extend((found..owned).filter_map(|row| self.services.get(row)));
        let slots = services
            .iter()
            .flat_map(|service| [service.cluster, service.local])
            .filter(|range| range.count > 0)
            .map(|range| range.first.saturating_add(range.count))
            .max()
            .unwrap_or(0)
            .min(self.slots.rows());
        Ok(Tables {
            frontends,
            names,
            services,
            slots: (0..slots)
                .filter_map(|slot| Some(self.slots.get(slot)?.backend))
                .collect(),
            backends: used(&self.backends, |backend: &F::Backend| {
                Into::<Backend<F::Addr>>::into(*backend).generation != 0
            })
            .into_iter()
            .map(Into::into)
            .collect(),
            source_ranges,
            filters: [
                words(prefilter::FRONTENDS),
                words(prefilter::BACKENDS),
                Vec::new(),
                words(prefilter::NODE_PORTS),
            ],
        })
    }

    fn visit_flows(&self, visit: &mut dyn FnMut(&FlowEnds<F::Addr>)) -> Result<(), TableError> {
        let entries = self.flows.iter();
        for entry in entries {
            let (key, flow) = entry.map_err(|source| TableError::Read {
                table: table_name::<F>(Table::Flows),
                source,
            })?;
            let (key, flow): (FlowKey<F::Addr>, Flow<F::Addr>) = (key.into(), flow.into());
            visit(&FlowEnds {
                frontend: flow.frontend_addr,
                frontend_port: flow.frontend_port,
                backend: flow.backend_addr,
                backend_port: flow.backend_port,
                protocol: key.protocol,
            });
        }
        Ok(())
    }

    fn write(&mut self, write: &Write<F>) -> Result<(), TableError> {
        let table = || table_name::<F>(write.table());
        let failed = |source| TableError::Write {
            table: table(),
            source,
        };
        let row = |done: Option<()>| done.ok_or_else(|| TableError::NoRow { table: table() });
        match write {
            Write::Filter {
                filter,
                word,
                value,
            } => row(self.filters.store(*filter, *word as usize * 8, *value)),
            Write::Backend {
                row: index,
                backend,
            } => row(self.backends.set(*index, (*backend).into())),
            Write::BackendState {
                row: index,
                flags,
                epoch,
            } => {
                let offset = offset_of!(Backend<F::Addr>, flags);
                let state = u16::from_ne_bytes([*flags, *epoch]);
                row(self.backends.store(*index, offset, state))?;
                if flags & Backend::<F::Addr>::SERVING == 0 {
                    self.removed_backends.notify_one();
                }
                Ok(())
            }
            Write::Slots { first, backends } => {
                for (slot, backend) in (*first..).zip(backends) {
                    row(self.slots.set(slot, Slot { backend: *backend }))?;
                }
                Ok(())
            }
            Write::Service {
                row: index,
                service,
            } => {
                let Service {
                    cluster,
                    local,
                    session_affinity,
                } = *service;
                let words = [
                    (offset_of!(Service, cluster), range_bits(cluster)),
                    (offset_of!(Service, local), range_bits(local)),
                    (
                        offset_of!(Service, session_affinity),
                        session_affinity_bits(session_affinity),
                    ),
                ];
                words
                    .into_iter()
                    .try_for_each(|(offset, word)| row(self.services.store(*index, offset, word)))
            }
            Write::SlotRange {
                row: index,
                set,
                range,
            } => {
                let offset = match set {
                    Set::Cluster => offset_of!(Service, cluster),
                    Set::Local => offset_of!(Service, local),
                };
                row(self.services.store(*index, offset, range_bits(*range)))
            }
            Write::SessionAffinity {
                row: index,
                session_affinity,
            } => row(self.services.store(
                *index,
                offset_of!(Service, session_affinity),
                session_affinity_bits(*session_affinity),
            )),
            Write::SourceRange { key } => self
                .source_ranges
                .insert(&write_range::<F>(key), MATCHES, 0)
                .map_err(failed),
            Write::DeleteSourceRange { key } => {
                gone(self.source_ranges.remove(&write_range::<F>(key))).map_err(failed)
            }
            Write::Name { row, name } => {
                self.names.insert(row, write_name(name), 0).map_err(failed)
            }
            Write::DeleteName { row } => gone(self.names.remove(row)).map_err(failed),
            Write::Frontend { key, frontend } => self
                .frontends
                .insert(F::FrontendKey::from(*key), frontend, 0)
                .map_err(failed),
            Write::DeleteFrontend { key } => {
                gone(self.frontends.remove(&F::FrontendKey::from(*key))).map_err(failed)
            }
        }
    }
}

/// A row of `SERVICES` that was never written.
const ZERO: Service = Service {
    cluster: SlotRange { first: 0, count: 0 },
    local: SlotRange { first: 0, count: 0 },
    session_affinity: SessionAffinity::NONE,
};

/// All rows up to the last one in use.
fn used<T: aya::Pod>(table: &Mapped<T>, is_used: impl Fn(&T) -> bool) -> Vec<T> {
    let last = (0..table.rows())
        .rev()
        .find(|row| table.get(*row).is_some_and(|value| is_used(&value)));
    let count = last.map_or(0, |row| row + 1);
    (0..count).filter_map(|row| table.get(row)).collect()
}
