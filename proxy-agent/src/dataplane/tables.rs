//! One family's tables in the kernel.

mod open;
mod stored;
mod sync;

use std::{io, sync::Arc};

use aya::maps::{HashMap, LpmTrie, MapData, MapError};
use proxy_common::{
    affinity::AffinityKey,
    backend::Backend,
    config::ConfigFamily,
    family::Family,
    flow::{Flow, FlowKey},
    foreign::Tuple,
    frontend::{Frontend, FrontendKey},
    masquerade::MasqueradeKey,
    prefilter::Filter,
    service::{Service, ServiceName, Slot, SlotRange},
    source_range::SourceRange,
    table::Table,
};
use tokio::sync::Notify;

pub use self::open::{open_affinity, open_filters, open_flows, open_masquerades};
pub(super) use self::open::{
    open_array, open_frontends, open_hash, open_names, open_source_ranges, table_name,
};
use self::{open::open_data, stored::read_name};
use crate::{
    dataplane::{
        mapped::{Access, Mapped, MappedError},
        maps::Maps,
    },
    model::ServicePortName,
    plan::write::Capacity,
};

/// A family whose map types aya can read and write.
pub trait KernelFamily: Family<Addr: aya::Pod> + ConfigFamily {
    type FrontendKey: aya::Pod + From<FrontendKey<Self::Addr>> + Into<FrontendKey<Self::Addr>>;
    type FlowKey: aya::Pod + From<FlowKey<Self::Addr>> + Into<FlowKey<Self::Addr>>;
    type Flow: aya::Pod + From<Flow<Self::Addr>> + Into<Flow<Self::Addr>>;
    type MasqueradeKey: aya::Pod + From<MasqueradeKey<Self::Addr>>;
    type Tuple: aya::Pod + From<Tuple<Self::Addr>> + Into<Tuple<Self::Addr>>;
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
            type Tuple = Tuple<Self::Addr>;
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

/// The value of all source ranges.
pub(super) const MATCHES: u32 = 1;

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
        let range_capacity = capacity(
            Table::SourceRanges,
            &open_data::<F>(maps, Table::SourceRanges)?,
        )?;
        let services = open_array::<F, _>(maps, Table::Services, access)?;
        let slots = open_array::<F, _>(maps, Table::Slots, access)?;
        let backends = open_array::<F, _>(maps, Table::Backends, access)?;
        Ok(Self {
            frontends,
            names: open_names::<F>(maps)?,
            source_ranges: open_source_ranges::<F>(maps)?,
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
    /// Returns the Service port that a row of `SERVICES` belongs to.
    pub fn name(&self, row: u32) -> Result<Option<ServicePortName>, TableError> {
        let name = present(self.names.get(&row, 0)).map_err(|source| TableError::Read {
            table: table_name::<F>(Table::Names),
            source,
        })?;
        Ok(name.map(|name| read_name(&name)))
    }

    /// Returns the row of `SERVICES` that a frontend leads to, if there is such a frontend.
    pub fn service(&self, key: FrontendKey<F::Addr>) -> Result<Option<u32>, TableError> {
        let frontend = present(self.frontends.get(&F::FrontendKey::from(key), 0));
        let frontend = frontend.map_err(|source| TableError::Read {
            table: table_name::<F>(Table::Frontends),
            source,
        })?;
        Ok(frontend.map(|frontend| frontend.service))
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

/// Returns nothing for an entry that is not there.
fn present<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the removal of an entry that is not there for done.
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
