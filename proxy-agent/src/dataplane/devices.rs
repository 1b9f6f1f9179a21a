//! `DEVICES`: what the programs know of the devices they are on.

use aya::maps::{HashMap, Map, MapData, MapError};
use proxy_common::{device::Device, table::Table};

use crate::dataplane::{maps::Maps, tables::TableError};

/// `DEVICES`, opened from its pin: devices by ifindex.
pub struct DeviceTable {
    map: HashMap<MapData, u32, Device>,
    entries: u32,
}

impl DeviceTable {
    /// Opens the table of a loaded datapath.
    pub fn open(maps: &impl Maps) -> Result<Self, TableError> {
        let open = || {
            let data = maps.open(Table::Devices.name())?;
            let entries = data.info()?.max_entries();
            let map = HashMap::try_from(Map::from_map_data(data)?)?;
            Ok(Self { map, entries })
        };
        open().map_err(|source| TableError::Open {
            table: name(),
            source,
        })
    }

    /// Returns how many devices there is room for.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// All devices, in no order.
    pub fn read(&self) -> Result<Vec<(u32, Device)>, TableError> {
        let rows: Result<_, MapError> = self.map.iter().collect();
        rows.map_err(|source| TableError::Read {
            table: name(),
            source,
        })
    }

    /// The description of a device, if there is one.
    pub fn get(&self, ifindex: u32) -> Option<Device> {
        self.map.get(&ifindex, 0).ok()
    }

    /// Describes a device.
    pub fn set(&mut self, ifindex: u32, device: Device) -> Result<(), TableError> {
        self.map
            .insert(ifindex, device, 0)
            .map_err(|source| match source {
                MapError::SyscallError(error)
                    if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
                {
                    TableError::Full {
                        table: name(),
                        entries: self.entries,
                    }
                }
                source => TableError::Write {
                    table: name(),
                    source,
                },
            })
    }

    /// Removes a device, if it is there.
    pub fn remove(&mut self, ifindex: u32) {
        let _ = self.map.remove(&ifindex);
    }
}

fn name() -> String {
    Table::Devices.to_string()
}
