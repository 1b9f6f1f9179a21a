//! The processes whose calls the socket programs translate: flags of `CONFIG`, and the
//! table `EXCEPTIONS`.

use std::{collections::BTreeSet, mem::offset_of};

use aya::maps::{HashMap, MapData, MapError};
use proxy_common::{config::Config, table::Table};

use crate::dataplane::{
    load::Loaded,
    mapped::{Access, Mapped, MappedError},
};

/// The programs' settings cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    #[error("the eBPF object has no table {0}")]
    Missing(&'static str),
    #[error("use table CONFIG")]
    Config(#[source] MappedError),
    #[error("use table EXCEPTIONS")]
    Exceptions(#[source] MapError),
}

/// Tells the socket programs whom to serve.
pub struct Serving {
    settings: Mapped<Config>,
    exceptions: HashMap<MapData, u64, u32>,
}

impl Serving {
    /// Opens the tables of a loaded datapath; once.
    pub fn open(loaded: &mut Loaded) -> Result<Self, ServingError> {
        let settings = loaded
            .ebpf
            .map(Table::Config.name())
            .ok_or(ServingError::Missing(Table::Config.name()))?;
        let settings = Mapped::new(settings, Access::Write).map_err(ServingError::Config)?;
        let exceptions = loaded
            .ebpf
            .take_map(Table::Exceptions.name())
            .ok_or(ServingError::Missing(Table::Exceptions.name()))?;
        let exceptions = HashMap::try_from(exceptions).map_err(ServingError::Exceptions)?;
        Ok(Self {
            settings,
            exceptions,
        })
    }

    /// Serves the host's own processes or not, and pods' or not.
    pub fn serve(&mut self, host: bool, pods: bool) {
        self.set(Config::SOCKETS_HOST, host);
        self.set(Config::SOCKETS_PODS, pods);
    }

    /// Leaves connected UDP sockets of the host's own processes to the packet
    /// path or not, and those of pods.
    pub fn leave_connected_udp(&mut self, host: bool, pods: bool) {
        self.set(Config::UDP_BY_PACKETS_HOST, host);
        self.set(Config::UDP_BY_PACKETS_PODS, pods);
    }

    /// Excepts the processes of these cgroups, by their ids, and no others. If the table
    /// has no room for all, it takes as many as fit.
    pub fn except(&mut self, cgroups: &BTreeSet<u64>) -> Result<(), ServingError> {
        let known: Vec<u64> = self.exceptions.keys().filter_map(Result::ok).collect();
        for cgroup in known.iter().filter(|cgroup| !cgroups.contains(cgroup)) {
            // Absent already is as good.
            let _ = self.exceptions.remove(cgroup);
        }
        let entered: Vec<_> = cgroups
            .iter()
            .map(|cgroup| self.exceptions.insert(cgroup, 1, 0))
            .collect();
        self.set(Config::SOCKETS_EXCEPTIONS, !cgroups.is_empty());
        entered
            .into_iter()
            .collect::<Result<(), _>>()
            .map_err(ServingError::Exceptions)
    }

    fn set(&mut self, flag: u32, on: bool) {
        if let Some(Config { flags, .. }) = self.settings.get(0) {
            let flags = if on { flags | flag } else { flags & !flag };
            // One row, just found.
            let _ = self.settings.store(0, offset_of!(Config, flags), flags);
        }
    }
}
