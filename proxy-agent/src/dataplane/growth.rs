//! Tables that were made smaller than is asked for now: larger ones take their places,
//! and what is in them is carried over.
//!
//! A table cannot grow. So the pin of the smaller one moves aside before the programs
//! are loaded on a new one. That of a table of flows stays until these have taken the
//! place of those that write to it. An agent that ends in between leaves it to the next
//! one.

mod services;

use std::{fs, io};

use aya::maps::{MapData, MapError};
use proxy_common::{
    family::{V4, V6},
    table::Table,
};
use tracing::{info, warn};

pub use self::services::{ServiceGrowthError, carry_services_over};
use crate::dataplane::{
    copy::{CopyError, copy},
    load::{FixedSizes, Sizes},
    maps::Maps,
    pins::{self, Pins},
    tables::{self, KernelFamily, TableError},
};

/// Tables that programs write to, without the family's suffix.
const FLOW_TABLES: [Table; 3] = [Table::Flows, Table::Masquerades, Table::Affinity];
/// Tables that only the agent writes to. Those who refer to their rows do so by number,
/// which the rows keep.
const SERVICE_TABLES: [Table; 6] = [
    Table::Frontends,
    Table::Services,
    Table::Slots,
    Table::Backends,
    Table::Names,
    Table::SourceRanges,
];

/// Flows cannot be carried over to a larger table.
#[derive(Debug, thiserror::Error)]
enum GrowthError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// The tables that were moved aside.
struct Former<'a>(&'a Pins);

impl Former<'_> {
    /// A pin beside that of the table itself.
    fn name(table: &str) -> String {
        format!("{table}-former")
    }

    fn has(&self, table: &str) -> bool {
        self.0.map(&Self::name(table)).exists()
    }
}

impl Maps for Former<'_> {
    fn open(&self, name: &str) -> Result<MapData, MapError> {
        self.0.open(&Self::name(name))
    }
}

/// The sizes with as much room as the tables of an earlier agent have, if that is more
/// and no flag has fixed it.
pub fn keeping_larger(pins: &Pins, sizes: Sizes, fixed: FixedSizes) -> Sizes {
    let or_found = |size: u32, table: Table, is_fixed: bool| {
        let found = pins::names(table).filter_map(|name| size_of(pins, &name));
        if is_fixed {
            size
        } else {
            found.fold(size, u32::max)
        }
    };
    Sizes {
        services: or_found(sizes.services, Table::Services, fixed.services),
        endpoints: or_found(sizes.endpoints, Table::Backends, fixed.endpoints),
        source_ranges: or_found(sizes.source_ranges, Table::SourceRanges, false),
        flows: or_found(sizes.flows, Table::Flows, fixed.flows),
        ..sizes
    }
}

/// Entries that a table was made for; nothing where there is none yet, or none that can
/// be read.
fn size_of(pins: &Pins, table: &str) -> Option<u32> {
    let info = pins.open(table).and_then(|map| map.info()).ok()?;
    Some(info.max_entries())
}

/// Moves tables aside that are smaller than they are to be. To be called before the
/// programs are loaded.
pub fn set_aside(pins: &Pins, sizes: Sizes) -> io::Result<()> {
    let mut grown = Vec::new();
    for (kind, table) in names() {
        // Of an agent that ended before it had made the larger one.
        if Former(pins).has(&table) && !pins.map(&table).exists() {
            fs::rename(pins.map(&Former::name(&table)), pins.map(&table))?;
        }
        let Some(wanted) = sizes.of(kind) else {
            continue;
        };
        // Where one cannot be read, loading says what is wrong.
        let Some(size) = size_of(pins, &table) else {
            continue;
        };
        // One that is still aside has entries that are not in this one.
        if size >= wanted || Former(pins).has(&table) {
            continue;
        }
        fs::rename(pins.map(&table), pins.map(&Former::name(&table)))?;
        grown.push(format!("{table} from {size} to {wanted} entries"));
    }
    // What is known of clients is counted anew.
    for table in pins::names(Table::Clients) {
        let wanted = sizes.of(Table::Clients);
        if size_of(pins, &table).is_some_and(|size| Some(size) < wanted) {
            fs::remove_file(pins.map(&table))?;
        }
    }
    if !grown.is_empty() {
        info!(
            "tables grow, what is in them is carried over: {}",
            grown.join(", ")
        );
    }
    Ok(())
}

/// Copies what is in tables of flows that were moved aside to those in their places, except what
/// is there. To be called before the new programs run.
pub fn carry_over(pins: &Pins) {
    carry_over_family::<V4>(pins);
    carry_over_family::<V6>(pins);
}

/// Carries over what came in meanwhile and removes the tables that were moved aside. To be
/// called when the new programs are in place everywhere: the others open flows until
/// then. A family of which not all could be copied keeps its tables for the next agent.
pub fn finish(pins: &Pins) {
    finish_family::<V4>(pins);
    finish_family::<V6>(pins);
}

fn finish_family<F: KernelFamily>(pins: &Pins) {
    if !carry_over_family::<F>(pins) {
        return;
    }
    for table in FLOW_TABLES.map(tables::table_name::<F>) {
        let path = pins.map(&Former::name(&table));
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Returns whether everything was copied.
fn carry_over_family<F: KernelFamily>(pins: &Pins) -> bool {
    let result = try_to_carry_over::<F>(pins).map_err(anyhow::Error::new);
    if let Err(error) = &result {
        let family = F::NAME;
        warn!(family, "some open flows are not carried over: {error:#}");
    }
    result.is_ok()
}

fn try_to_carry_over<F: KernelFamily>(pins: &Pins) -> Result<(), GrowthError> {
    let former = Former(pins);
    let has = |table| former.has(&tables::table_name::<F>(table));
    // Reply tuples first: a flow without is a masqueraded one that gets no replies.
    if has(Table::Masquerades) {
        let (from, mut to) = (
            tables::open_masquerades::<F>(&former)?,
            tables::open_masquerades::<F>(pins)?,
        );
        copy(&from, &mut to, |_, client| client)?;
    }
    if has(Table::Flows) {
        let (from, mut to) = (
            tables::open_flows::<F>(&former)?,
            tables::open_flows::<F>(pins)?,
        );
        let flows = copy(&from, &mut to, |_, flow| flow)?;
        info!(family = F::NAME, flows, "open flows carried over");
    }
    if has(Table::Affinity) {
        let (from, mut to) = (
            tables::open_affinity::<F>(&former)?,
            tables::open_affinity::<F>(pins)?,
        );
        copy(&from, &mut to, |_, affinity| affinity)?;
    }
    Ok(())
}

/// The tables that grow, suffixes included.
fn names() -> impl Iterator<Item = (Table, String)> {
    FLOW_TABLES
        .into_iter()
        .chain(SERVICE_TABLES)
        .flat_map(|table| pins::names(table).map(move |name| (table, name)))
}
