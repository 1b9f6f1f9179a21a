//! Tables of Services that were moved aside: what is in them is copied to the same rows
//! of larger ones.
//!
//! Nobody but the agent writes to these tables, and it does not before they are complete.
//! So one copy is enough, and one that an agent did not bring to its end can be repeated.

use std::{fs, io, path::PathBuf};

use proxy_common::{
    family::{V4, V6},
    service::{Service, Slot},
    table::Table,
};

use crate::dataplane::{
    copy::{CopyError, copy},
    growth::{Former, SERVICE_TABLES},
    mapped::{Access, Mapped},
    pins::Pins,
    tables::{self, KernelFamily, TableError},
};

/// The tables of Services cannot be made larger.
#[derive(Debug, thiserror::Error)]
pub enum ServiceGrowthError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("copy table {table}")]
    Copy {
        table: String,
        #[source]
        source: CopyError,
    },
    #[error("copy table {table}: the new one is smaller")]
    Smaller { table: String },
    #[error("remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Copies what is in tables of Services that were moved aside, and removes those. To be
/// called before the new programs run.
pub fn carry_services_over(pins: &Pins) -> Result<(), ServiceGrowthError> {
    carry_over::<V4>(pins)?;
    carry_over::<V6>(pins)
}

fn carry_over<F: KernelFamily>(pins: &Pins) -> Result<(), ServiceGrowthError> {
    let former = Former(pins);
    for table in SERVICE_TABLES {
        let name = tables::table_name::<F>(table);
        if !former.has(&name) {
            continue;
        }
        match table {
            Table::Frontends => copy_hash(&name, || {
                let (from, mut to) = (
                    tables::open_frontends::<F>(&former)?,
                    tables::open_frontends::<F>(pins)?,
                );
                Ok(copy(&from, &mut to, |_, frontend| frontend))
            })?,
            Table::Names => copy_hash(&name, || {
                let (from, mut to) = (
                    tables::open_names::<F>(&former)?,
                    tables::open_names::<F>(pins)?,
                );
                Ok(copy(&from, &mut to, |_, name| name))
            })?,
            Table::SourceRanges => copy_ranges::<F>(pins)?,
            Table::Services => copy_rows::<F, Service>(pins, table)?,
            Table::Slots => copy_rows::<F, Slot>(pins, table)?,
            _ => copy_rows::<F, F::Backend>(pins, table)?,
        }
        let path = pins.map(&Former::name(&name));
        fs::remove_file(&path).map_err(|source| ServiceGrowthError::Remove { path, source })?;
    }
    Ok(())
}

fn copy_hash(
    table: &str,
    copy: impl FnOnce() -> Result<Result<usize, CopyError>, TableError>,
) -> Result<(), ServiceGrowthError> {
    match copy()? {
        Ok(_) => Ok(()),
        Err(source) => Err(ServiceGrowthError::Copy {
            table: table.to_owned(),
            source,
        }),
    }
}

fn copy_ranges<F: KernelFamily>(pins: &Pins) -> Result<(), ServiceGrowthError> {
    let (from, mut to) = (
        tables::open_source_ranges::<F>(&Former(pins))?,
        tables::open_source_ranges::<F>(pins)?,
    );
    let copied = from.keys().try_for_each(|key| {
        let key = key.map_err(CopyError::Read)?;
        to.insert(&key, tables::MATCHES, 0)
            .map_err(CopyError::Write)
    });
    copied.map_err(|source| ServiceGrowthError::Copy {
        table: tables::table_name::<F>(Table::SourceRanges),
        source,
    })
}

fn copy_rows<F: KernelFamily, T: aya::Pod>(
    pins: &Pins,
    table: Table,
) -> Result<(), ServiceGrowthError> {
    let from: Mapped<T> = tables::open_array::<F, _>(&Former(pins), table, Access::Read)?;
    let mut to: Mapped<T> = tables::open_array::<F, _>(pins, table, Access::Write)?;
    let rows = (0..from.rows()).filter_map(|row| Some((row, from.get(row)?)));
    for (row, value) in rows {
        to.set(row, value)
            .ok_or_else(|| ServiceGrowthError::Smaller {
                table: tables::table_name::<F>(table),
            })?;
    }
    Ok(())
}
