//! `DEVICES`: what the programs know of the devices they are on.

use aya::maps::{HashMap, Map, MapData, MapError};
use proxy_common::device::Device;

use crate::dataplane::{maps::Maps, tables::TableError};

/// `DEVICES`, opened from its pin: devices by ifindex.
pub struct DeviceTable(HashMap<MapData, u32, Device>);

impl DeviceTable {
    /// Opens the table of a loaded datapath.
    pub fn open(maps: &impl Maps) -> Result<Self, TableError> {
        maps.open("DEVICES")
            .and_then(Map::from_map_data)
            .and_then(HashMap::try_from)
            .map(Self)
            .map_err(|source| TableError::Open {
                table: name(),
                source,
            })
    }

    /// All devices, in no order.
    pub fn read(&self) -> Result<Vec<(u32, Device)>, TableError> {
        let rows: Result<_, MapError> = self.0.iter().collect();
        rows.map_err(|source| TableError::Read {
            table: name(),
            source,
        })
    }

    /// The description of a device, if there is one.
    pub fn get(&self, ifindex: u32) -> Option<Device> {
        self.0.get(&ifindex, 0).ok()
    }

    /// Describes a device.
    pub fn set(&mut self, ifindex: u32, device: Device) -> Result<(), TableError> {
        self.0
            .insert(ifindex, device, 0)
            .map_err(|source| TableError::Write {
                table: name(),
                source,
            })
    }

    /// Removes a device; absent already is as good.
    pub fn remove(&mut self, ifindex: u32) {
        let _ = self.0.remove(&ifindex);
    }
}

fn name() -> String {
    "DEVICES".to_owned()
}
