//! The programs' counters.

use std::{collections::BTreeMap, fmt};

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use proxy_common::{counter::Counter, table::Table};

use crate::dataplane::{
    pins::Pins,
    sweep::{Reports, Swept},
};

/// `COUNTERS` and what sweeps report, opened from their pins.
pub struct Counters {
    counters: PerCpuArray<MapData, u64>,
    sweeps: Reports<MapData>,
}

impl Counters {
    /// Opens the counters of a loaded datapath.
    pub fn open(pins: &Pins) -> Result<Self, MapError> {
        let open = |name| MapData::from_pin(pins.map(name)).and_then(Map::from_map_data);
        Ok(Self {
            counters: open(Table::Counters.name())?.try_into()?,
            sweeps: Reports::open(
                open(Table::Sweeps.name())?,
                open(Table::SweptMasquerades.name())?,
            )?,
        })
    }

    /// All counters, summed over the CPUs. One that cannot be read is left out.
    pub fn read(&self) -> BTreeMap<&'static str, u64> {
        Counter::ALL
            .iter()
            .filter_map(|counter| {
                let values = self.counters.get(&(*counter as u32), 0).ok()?;
                Some((counter.label(), values.iter().sum()))
            })
            .collect()
    }

    /// One counter, summed over the CPUs.
    pub fn of(&self, counter: Counter) -> u64 {
        let values = self.counters.get(&(counter as u32), 0);
        values.map_or(0, |values| values.iter().sum())
    }

    /// Returns the results of the last sweeps, IPv4 first; `None` if they cannot be read.
    pub fn swept(&self) -> [Option<Swept>; 2] {
        [0, 1].map(|family| self.sweeps.read(family).ok())
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}
