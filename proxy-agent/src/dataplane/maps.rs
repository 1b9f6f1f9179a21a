//! Opening maps by name, from pins or from a loaded object.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};

use crate::dataplane::pins::Pins;

/// A place that has the maps by name.
pub trait Maps {
    /// Opens the map of that name.
    fn open(&self, name: &str) -> Result<MapData, MapError>;
}

impl Maps for Pins {
    fn open(&self, name: &str) -> Result<MapData, MapError> {
        MapData::from_pin(self.map(name))
    }
}

/// The maps of a loaded object, which need not be pinned.
impl Maps for Ebpf {
    fn open(&self, name: &str) -> Result<MapData, MapError> {
        let missing = || MapError::IoError(io::ErrorKind::NotFound.into());
        let (Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data)) =
            self.map(name).ok_or_else(missing)?
        else {
            return Err(missing());
        };
        MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?)
    }
}
