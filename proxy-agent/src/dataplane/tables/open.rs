//! Opens a family's tables by their names.

use aya::maps::{HashMap, LpmTrie, Map, MapData};
use proxy_common::{
    affinity::Affinity, family::Family, frontend::Frontend, prefilter::Filter,
    service::ServiceName, table::Table,
};

use super::{KernelFamily, TableError};
use crate::dataplane::{
    mapped::{Access, Mapped},
    maps::Maps,
};

/// A family's frontends.
pub(in crate::dataplane) fn open_frontends<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<HashMap<MapData, F::FrontendKey, Frontend>, TableError> {
    open_hash::<F, _, _>(maps, Table::Frontends)
}

/// Opens a family's table of the Service ports that rows of `SERVICES` belong to.
pub(in crate::dataplane) fn open_names<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<HashMap<MapData, u32, ServiceName>, TableError> {
    open_hash::<F, _, _>(maps, Table::Names)
}

/// A family's source ranges.
pub(in crate::dataplane) fn open_source_ranges<F: KernelFamily>(
    maps: &impl Maps,
) -> Result<LpmTrie<MapData, F::SourceRange, u32>, TableError> {
    Map::from_map_data(open_data::<F>(maps, Table::SourceRanges)?)
        .and_then(LpmTrie::try_from)
        .map_err(|source| TableError::Open {
            table: table_name::<F>(Table::SourceRanges),
            source,
        })
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
pub(in crate::dataplane) fn table_name<F: Family>(table: Table) -> String {
    format!("{table}_{}", F::SUFFIX)
}

pub(super) fn open_data<F: Family>(maps: &impl Maps, table: Table) -> Result<MapData, TableError> {
    let name = table_name::<F>(table);
    maps.open(&name).map_err(|source| TableError::Open {
        table: name,
        source,
    })
}

pub(in crate::dataplane) fn open_hash<F: Family, K: aya::Pod, V: aya::Pod>(
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
pub(in crate::dataplane) fn open_array<F: Family, T: aya::Pod>(
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
