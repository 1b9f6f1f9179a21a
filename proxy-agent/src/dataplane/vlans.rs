//! `VLANS`: the uplinks of clients in VLANs.

use std::collections::BTreeMap;

use aya::maps::{HashMap, Map, MapData, MapError};
use proxy_common::{table::Table, vlan::Vlan};

use crate::dataplane::{maps::Maps, tables::TableError};

/// `VLANS`, opened from its pin.
pub struct VlanTable {
    map: HashMap<MapData, Vlan, u32>,
}

impl VlanTable {
    /// Opens the table of a loaded datapath.
    pub fn open(maps: &impl Maps) -> Result<Self, TableError> {
        let open = || {
            let data = maps.open(Table::Vlans.name())?;
            let map = HashMap::try_from(Map::from_map_data(data)?)?;
            Ok(Self { map })
        };
        open().map_err(|source| TableError::Open {
            table: name(),
            source,
        })
    }

    /// Brings the table to these uplinks.
    pub fn set_all(&mut self, wanted: &BTreeMap<Vlan, u32>) -> Result<(), TableError> {
        let rows: Result<BTreeMap<_, _>, MapError> = self.map.iter().collect();
        let rows = rows.map_err(|source| TableError::Read {
            table: name(),
            source,
        })?;
        for vlan in rows.keys().filter(|vlan| !wanted.contains_key(vlan)) {
            // Absent already is as good.
            let _ = self.map.remove(vlan);
        }
        for (vlan, uplink) in wanted {
            if rows.get(vlan) == Some(uplink) {
                continue;
            }
            let written = self.map.insert(vlan, uplink, 0);
            written.map_err(|source| TableError::Write {
                table: name(),
                source,
            })?;
        }
        Ok(())
    }
}

fn name() -> String {
    Table::Vlans.to_string()
}
