//! The pinned maps by descriptor: what is needed to pin them again.

use std::fs;

use aya::{
    maps::{MapData, MapError},
    pin::PinError,
};

use crate::dataplane::{maps::Maps as _, pins::Pins};

/// The pins of the maps cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    #[error("open table {table}")]
    Open {
        table: String,
        #[source]
        source: MapError,
    },
    #[error("make the folder of the tables")]
    Folder(#[source] std::io::Error),
    #[error("remove what is pinned in the place of table {table}")]
    Foreign {
        table: String,
        #[source]
        source: std::io::Error,
    },
    #[error("pin table {table} again")]
    Pin {
        table: String,
        #[source]
        source: PinError,
    },
}

/// All pinned maps, each held besides its pin. Without a pin or a descriptor a
/// map of programs is emptied, and the slow path with it.
#[derive(Debug)]
pub struct HeldMaps {
    pins: Pins,
    maps: Vec<(String, MapData)>,
}

impl HeldMaps {
    /// Opens the maps of a loaded datapath.
    pub fn open(pins: &Pins) -> Result<Self, HeldError> {
        let open = |table: String| match pins.open(&table) {
            Ok(map) => Ok((table, map)),
            Err(source) => Err(HeldError::Open { table, source }),
        };
        Ok(Self {
            pins: pins.clone(),
            maps: Pins::tables()
                .map(|(_, name)| open(name))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Removes pins in the places of these maps that are of something else.
    pub fn remove_others(&self) -> Result<(), HeldError> {
        for (table, map) in &self.maps {
            let path = self.pins.map(table);
            let is_ours = self
                .pins
                .open(table)
                .is_ok_and(|pinned| id(&pinned) == id(map));
            if path.exists() && !is_ours {
                fs::remove_file(&path).map_err(|source| HeldError::Foreign {
                    table: table.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Pins those again whose pins are gone; returns how many.
    pub fn pin_again(&self) -> Result<usize, HeldError> {
        fs::create_dir_all(self.pins.maps())
            .and_then(|()| self.pins.state_flow_layout())
            .map_err(HeldError::Folder)?;
        let mut pinned = 0;
        for (table, map) in &self.maps {
            let path = self.pins.map(table);
            if !path.exists() {
                map.pin(&path).map_err(|source| HeldError::Pin {
                    table: table.clone(),
                    source,
                })?;
                pinned += 1;
            }
        }
        Ok(pinned)
    }
}

/// The kernel's number of a map, which no other has while this one is held.
fn id(map: &MapData) -> Option<u32> {
    Some(map.info().ok()?.id())
}
