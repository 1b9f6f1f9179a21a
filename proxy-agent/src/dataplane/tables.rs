//! One family's tables in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::offset_of,
    sync::Arc,
};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use proxy_common::{
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    config::ConfigFamily,
    family::Family,
    flow::{Flow, FlowKey},
    frontend::{Frontend, FrontendKey},
    masquerade::MasqueradeKey,
    net::Protocol,
    prefilter::{self, Filter},
    service::{NAME_LEN, Service, ServiceName, SessionAffinity, Slot, SlotRange},
    source_range::SourceRange,
    table::Table,
};
use tokio::sync::Notify;

use crate::{
    dataplane::{
        Dataplane,
        mapped::{Access, Mapped, MappedError},
        maps::Maps,
    },
    model::{ObjectKey, ServicePortName},
    plan::{
        filter::FlowEnds,
        write::{Capacity, RangeKey, Set, Tables, Write},
    },
};

/// A family whose map types aya can read and write.
pub trait KernelFamily: Family<Addr: aya::Pod> + ConfigFamily {
    type FrontendKey: aya::Pod + From<FrontendKey<Self::Addr>> + Into<FrontendKey<Self::Addr>>;
    type FlowKey: aya::Pod + From<FlowKey<Self::Addr>> + Into<FlowKey<Self::Addr>>;
    type Flow: aya::Pod + From<Flow<Self::Addr>> + Into<Flow<Self::Addr>>;
    type MasqueradeKey: aya::Pod + From<MasqueradeKey<Self::Addr>>;
    type Backend: aya::Pod + From<Backend<Self::Addr>> + Into<Backend<Self::Addr>>;
    type SourceRange: aya::Pod + From<SourceRange<Self::Addr>> + Into<SourceRange<Self::Addr>>;
    type AffinityKey: aya::Pod + From<AffinityKey<Self::Addr>> + Into<AffinityKey<Self::Addr>>;
}

macro_rules! kernel_family {
    ($($family:ident)+) => { $(
        impl KernelFamily for proxy_common::family::$family {
            type FrontendKey = FrontendKey<Self::Addr>;
            type FlowKey = FlowKey<Self::Addr>;
            type Flow = Flow<Self::Addr>;
            type MasqueradeKey = MasqueradeKey<Self::Addr>;
            type Backend = Backend<Self::Addr>;
            type SourceRange = SourceRange<Self::Addr>;
            type AffinityKey = AffinityKey<Self::Addr>;
        }
    )+ };
}

kernel_family!(V4 V6);

/// A table that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("open table {table}")]
    Open {
        table: String,
        #[source]
        source: MapError,
    },
    #[error("use table {table}")]
    Mapped {
        table: String,
        #[source]
        source: MappedError,
    },
    #[error("read table {table}")]
    Read {
        table: String,
        #[source]
        source: MapError,
    },
    #[error("write table {table}")]
    Write {
        table: String,
        #[source]
        source: MapError,
    },
    #[error("table {table} is full: it was made for {entries} entries")]
    Full { table: String, entries: u32 },
    #[error("write table {table}: it has no such row")]
    NoRow { table: String },
}

/// One family's tables.
pub struct KernelTables<F: KernelFamily> {
    frontends: HashMap<MapData, F::FrontendKey, Frontend>,
    names: HashMap<MapData, u32, ServiceName>,
    services: Mapped<Service>,
    slots: Mapped<Slot>,
    backends: Mapped<F::Backend>,
    source_ranges: LpmTrie<MapData, F::SourceRange, u32>,
    filters: Mapped<Filter>,
    flows: HashMap<MapData, F::FlowKey, F::Flow>,
    capacity: Capacity,
    removed_backends: Arc<Notify>,
}

impl<F: KernelFamily> KernelTables<F> {
    /// Opens the family's tables.
    pub fn open(maps: &impl Maps, access: Access) -> Result<Self, TableError> {
        let frontends = open_frontends::<F>(maps)?;
        let capacity = |table: Table, map: &MapData| {
            map.info()
                .map(|info| info.max_entries())
                .map_err(|source| TableError::Open {
                    table: table_name::<F>(table),
                    source,
                })
        };
        let frontend_capacity =
            capacity(Table::Frontends, &open_data::<F>(maps, Table::Frontends)?)?;
        let ranges = open_data::<F>(maps, Table::SourceRanges)?;
        let range_capacity = capacity(Table::SourceRanges, &ranges)?;
        let services = open_array::<F, _>(maps, Table::Services, access)?;
        let slots = open_array::<F, _>(maps, Table::Slots, access)?;
        let backends = open_array::<F, _>(maps, Table::Backends, access)?;
        Ok(Self {
            frontends,
            names: open_names::<F>(maps)?,
            source_ranges: Map::from_map_data(ranges)
                .and_then(LpmTrie::try_from)
                .map_err(|source| TableError::Open {
                    table: table_name::<F>(Table::SourceRanges),
                    source,
                })?,
            filters: open_filters::<F>(maps, access)?,
            flows: open_flows::<F>(maps)?,
            capacity: Capacity {
                frontends: frontend_capacity,
                services: services.rows(),
                slots: slots.rows(),
                backends: backends.rows(),
                source_ranges: range_capacity,
            },
            services,
            slots,
            backends,
            removed_backends: Arc::default(),
        })
    }

    /// Tells whenever a backend stops serving.
    #[must_use]
    pub fn announcing(self, removed_backends: Arc<Notify>) -> Self {
        Self {
            removed_backends,
            ..self
        }
    }
}

impl<F: KernelFamily> KernelTables<F> {
    /// Whose a row of `SERVICES` is.
    pub fn name(&self, row: u32) -> Result<Option<ServicePortName>, TableError> {
        let name = present(self.names.get(&row, 0)).map_err(|source| TableError::Read {
            table: table_name::<F>(Table::Names),
            source,
        })?;
        Ok(name.map(|name| read_name(&name)))
    }

    /// The backend in a row.
    pub fn backend(&self, row: u32) -> Option<Backend<F::Addr>> {
        self.backends.get(row).map(Into::into)
    }

    /// All rows of `BACKENDS`.
    pub fn backends(&self) -> impl Iterator<Item = Backend<F::Addr>> {
        (0..self.backends.rows()).filter_map(|row| self.backend(row))
    }

    /// The rows of `BACKENDS` that a range leads to.
    pub fn members(&self, range: SlotRange) -> impl Iterator<Item = u32> {
        let slots = range.first..range.first.saturating_add(range.count);
        slots.filter_map(|slot| Some(self.slots.get(slot)?.backend))
    }
}

/// A family's frontends.
pub(super) fn open_frontends<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<HashMap<MapData, F::FrontendKey, Frontend>, TableError> {
    open_hash::<F, _, _>(maps, Table::Frontends)
}

/// Whose a family's rows of `SERVICES` are.
pub(super) fn open_names<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<HashMap<MapData, u32, ServiceName>, TableError> {
    open_hash::<F, _, _>(maps, Table::Names)
}

/// A family's flow table.
pub fn open_flows<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<HashMap<MapData, F::FlowKey, F::Flow>, TableError> {
    open_hash::<F, _, _>(maps, Table::Flows)
}

/// A family's reply tuples.
pub fn open_masquerades<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<HashMap<MapData, F::MasqueradeKey, F::FlowKey>, TableError> {
    open_hash::<F, _, _>(maps, Table::Masquerades)
}

/// A family's filters.
pub fn open_filters<F: KernelFamily>(
    maps: &impl Maps,
    access: Access,
) -> Result<Mapped<Filter>, TableError> {
    open_array::<F, _>(maps, Table::Prefilter, access)
}

/// A family's remembered clients.
pub fn open_affinity<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<HashMap<MapData, F::AffinityKey, Affinity>, TableError> {
    open_hash::<F, _, _>(maps, Table::Affinity)
}

/// Name of a family's table, with its suffix.
pub(super) fn table_name<F: Family>(table: Table) -> String {
    format!("{table}_{}", F::SUFFIX)
}

fn open_data<F: Family>(maps: &impl Maps, table: Table) -> Result<MapData, TableError> {
    let name = table_name::<F>(table);
    maps.open(&name).map_err(|source| TableError::Open {
        table: name,
        source,
    })
}

fn open_hash<F: Family, K: aya::Pod, V: aya::Pod>(
    maps: &impl Maps,
    table: Table,
) -> Result<HashMap<MapData, K, V>, TableError> {
    let data = open_data::<F>(maps, table)?;
    Map::from_map_data(data)
        .and_then(HashMap::try_from)
        .map_err(|source| TableError::Open {
            table: table_name::<F>(table),
            source,
        })
}

/// A family's table of rows.
pub(super) fn open_array<F: Family, T: aya::Pod>(
    maps: &impl Maps,
    table: Table,
    access: Access,
) -> Result<Mapped<T>, TableError> {
    let name = table_name::<F>(table);
    let map =
        Map::from_map_data(open_data::<F>(maps, table)?).map_err(|source| TableError::Open {
            table: name.clone(),
            source,
        })?;
    Mapped::new(&map, access).map_err(|source| TableError::Mapped {
        table: name,
        source,
    })
}

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
                .insert(&write_range::<F>(key), 1, 0)
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

/// A range as the word that is stored.
fn range_bits(range: SlotRange) -> u64 {
    word(range.first, range.count)
}

/// Session affinity as the word that is stored.
fn session_affinity_bits(session_affinity: SessionAffinity) -> u64 {
    word(session_affinity.seconds, session_affinity.round)
}

/// Two halves as they lie in memory.
fn word(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn read_range<F: KernelFamily>(key: &Key<F::SourceRange>) -> RangeKey<F::Addr> {
    RangeKey {
        range: key.data().into(),
        bits: key.prefix_len(),
    }
}

fn write_range<F: KernelFamily>(key: &RangeKey<F::Addr>) -> Key<F::SourceRange> {
    Key::new(key.bits, key.range.into())
}

/// What is not there is nothing.
fn present<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deleting what is not there is done.
pub(super) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

/// Returns whether an element was not made because it is there.
pub(super) fn is_there(error: &MapError) -> bool {
    matches!(
        error,
        MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::AlreadyExists
    )
}

fn read_name(name: &ServiceName) -> ServicePortName {
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    ServicePortName {
        service: ObjectKey::new(text(&name.namespace), text(&name.name)),
        port: text(&name.port).into(),
        protocol: Protocol(u8::try_from(name.protocol).unwrap_or(0)),
    }
}

fn write_name(name: &ServicePortName) -> ServiceName {
    let bytes = |text: &str| {
        let mut bytes = [0; NAME_LEN + 1];
        let length = text.len().min(NAME_LEN);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        bytes
    };
    ServiceName {
        namespace: bytes(name.service.namespace()),
        name: bytes(name.service.name()),
        port: bytes(&name.port),
        protocol: name.protocol.0.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_map() {
        let name = ServicePortName {
            service: ObjectKey::new("n".repeat(63), "1-starts-with-a-digit"),
            port: "".into(),
            protocol: Protocol::UDP,
        };
        assert_eq!(read_name(&write_name(&name)), name);
    }

    #[test]
    fn words_are_stored_as_the_programs_read_them() {
        let range = SlotRange { first: 7, count: 3 };
        // SAFETY: eight plain bytes of the same layout.
        let read: SlotRange = unsafe { std::mem::transmute(range_bits(range)) };
        assert_eq!(read, range);
        let session_affinity = SessionAffinity {
            seconds: 10_800,
            round: 2,
        };
        // SAFETY: eight plain bytes of the same layout.
        let read: SessionAffinity =
            unsafe { std::mem::transmute(session_affinity_bits(session_affinity)) };
        assert_eq!(read, session_affinity);
    }
}
