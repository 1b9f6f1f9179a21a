//! `FOREIGN` in the kernel: flows that are left to kube-proxy's rules.

use std::collections::HashMap as Index;

use aya::maps::{HashMap, MapData, MapError};
use proxy_common::{
    foreign::{Foreign, Tuple},
    table::Table,
};

use crate::dataplane::{
    maps::Maps,
    tables::{KernelFamily, TableError, gone, is_there, open_hash, table_name},
};

/// `bpf_map_update_elem`: create only.
const NO_EXIST: u64 = 1;

/// One family's table.
pub struct ForeignTable<F: KernelFamily> {
    map: HashMap<MapData, F::Tuple, Foreign>,
}

impl<F: KernelFamily> ForeignTable<F> {
    /// Opens the table.
    pub fn open(maps: &impl Maps) -> Result<Self, TableError> {
        let map = open_hash::<F, _, _>(maps, Table::Foreign)?;
        Ok(Self { map })
    }

    /// Everything that is in the table. What comes or goes meanwhile may be left out.
    pub fn entries(&self) -> Result<Index<Tuple<F::Addr>, Foreign>, TableError> {
        let entries = self.map.iter();
        entries
            .map(|entry| entry.map(|(key, value)| (key.into(), value)))
            .collect::<Result<_, _>>()
            .map_err(|source| TableError::Read {
                table: table_name::<F>(Table::Foreign),
                source,
            })
    }

    /// Enters a tuple, unless it is there; returns whether there is room for it.
    pub fn insert(&mut self, tuple: Tuple<F::Addr>, value: Foreign) -> Result<bool, TableError> {
        match self.map.insert(F::Tuple::from(tuple), value, NO_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if is_there(&error) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                Ok(false)
            }
            Err(source) => Err(TableError::Write {
                table: table_name::<F>(Table::Foreign),
                source,
            }),
        }
    }

    /// Removes a tuple, if it is there.
    pub fn remove(&mut self, tuple: Tuple<F::Addr>) -> Result<(), TableError> {
        gone(self.map.remove(&F::Tuple::from(tuple))).map_err(|source| TableError::Write {
            table: table_name::<F>(Table::Foreign),
            source,
        })
    }
}
