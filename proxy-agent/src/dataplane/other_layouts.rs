//! Leftovers of agents of other layout versions, older or newer, below the
//! bpf root: programs that are still attached, their tables, and open flows.
//!
//! Their tables cannot be read, but for those of flows if the folder says that
//! these have our layout or the one before: see [`FLOW_LAYOUT`].

use std::{
    collections::HashMap as Index,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapError};
use proxy_common::{
    FLOW_LAYOUT, FORMER_FLOW_LAYOUT,
    backend::Backend,
    flow::{Flow, FlowKey},
    frontend::{Frontend, FrontendKey},
    prefilter,
};

use crate::{
    dataplane::{
        Dataplane as _, bpf,
        copy::{CopyError, copy},
        mapped::Access,
        maps::Maps,
        pins::{self, Pins},
        tables::{self, KernelFamily, KernelTables, TableError},
    },
    plan::write::Tables,
};

/// An error taking over or removing another layout's leftovers.
#[derive(Debug, thiserror::Error)]
pub enum OtherLayoutError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("copy a flow")]
    Copy(#[from] CopyError),
    #[error("read folder {path}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A folder of another layout version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherLayout {
    path: PathBuf,
}

impl Maps for OtherLayout {
    fn open(&self, name: &str) -> Result<MapData, MapError> {
        MapData::from_pin(self.path.join("maps").join(name))
    }
}

impl OtherLayout {
    /// All that are there.
    pub fn find(pins: &Pins) -> Vec<Self> {
        let paths = pins.other_layouts().into_iter();
        paths.map(|path| Self { path }).collect()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Links that are pinned: as long as one is there, its program runs.
    pub fn links(&self) -> usize {
        fs::read_dir(self.path.join("links")).map_or(0, Iterator::count)
    }

    /// Returns whether its flows can be read.
    pub fn has_known_flows(&self) -> bool {
        matches!(
            pins::flow_layout(&self.path),
            Some(FLOW_LAYOUT | FORMER_FLOW_LAYOUT)
        )
    }

    /// Returns whether its flows have the layout before ours.
    fn is_former(&self) -> bool {
        pins::flow_layout(&self.path) == Some(FORMER_FLOW_LAYOUT)
    }

    /// Sets the bits of its filters in ours, so that packets of its flows are
    /// looked at. To be done before a planner reads ours.
    pub fn carry_filters_over<F: KernelFamily>(&self, pins: &Pins) -> Result<(), TableError> {
        let theirs = tables::open_filters::<F>(self, Access::Read)?;
        let mut ours = tables::open_filters::<F>(pins, Access::Write)?;
        for filter in 0..u32::try_from(prefilter::FILTERS).unwrap_or(0) {
            let (Some(theirs), Some(known)) = (theirs.get(filter), ours.get(filter)) else {
                continue;
            };
            for (index, (theirs, known)) in theirs.words.iter().zip(known.words).enumerate() {
                if theirs | known != known {
                    // A row that is there.
                    let _ = ours.store(filter, index * size_of::<u64>(), theirs | known);
                }
            }
        }
        Ok(())
    }

    /// Copies its open flows to our tables, except those that are there;
    /// returns how many.
    pub fn carry_flows_over<F: KernelFamily>(
        &self,
        pins: &Pins,
    ) -> Result<usize, OtherLayoutError> {
        let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
        let rows = Rows::<F>::of(&tables);
        let is_former = self.is_former();
        let flows = copy(
            &tables::open_flows::<F>(self)?,
            &mut tables::open_flows::<F>(pins)?,
            |key, flow| {
                let flow = if is_former {
                    modernized(flow.into())
                } else {
                    flow.into()
                };
                rows.adapt((*key).into(), flow).into()
            },
        )?;
        copy(
            &tables::open_masquerades::<F>(self)?,
            &mut tables::open_masquerades::<F>(pins)?,
            |_, client| client,
        )?;
        Ok(flows)
    }

    /// Takes its programs off devices, but for those that we do not serve
    /// ourselves yet.
    pub fn unlink_devices(&self, unserved: impl Fn(u32) -> bool) -> Result<(), OtherLayoutError> {
        self.unlink(|name| {
            let ifindex = name
                .split_once('-')
                .and_then(|(ifindex, _)| ifindex.parse().ok());
            ifindex.is_some_and(|ifindex| !unserved(ifindex))
        })
    }

    /// Takes its programs off cgroups, and removes all of it if no program runs
    /// any more; returns whether that was so.
    pub fn remove(&self) -> Result<bool, OtherLayoutError> {
        self.unlink(|name| name.starts_with("cgroup-"))?;
        if self.links() > 0 {
            return Ok(false);
        }
        fs::remove_dir_all(&self.path).map_err(|source| OtherLayoutError::Remove {
            path: self.path.clone(),
            source,
        })?;
        Ok(true)
    }

    fn unlink(&self, may_go: impl Fn(&str) -> bool) -> Result<(), OtherLayoutError> {
        let links = self.path.join("links");
        let entries = match fs::read_dir(&links) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|source| OtherLayoutError::Folder {
                path: links,
                source,
            })?,
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(&may_go) {
                // Without their pinned tables its programs drop what they meet.
                bpf::open_pinned(&path)
                    .and_then(|link| bpf::detach_link(link.as_fd()))
                    .and_then(|()| fs::remove_file(&path))
                    .map_err(|source| OtherLayoutError::Remove { path, source })?;
            }
        }
        Ok(())
    }
}

/// A flow of the layout before ours as it stands in ours.
fn modernized<A>(mut flow: Flow<A>) -> Flow<A> {
    if flow.uplink != 0 {
        flow.flags |= Flow::<A>::HOST;
    }
    flow
}

/// The rows of our tables that hold frontends and backends.
struct Rows<'a, F: KernelFamily> {
    tables: &'a Tables<F>,
    /// Rows of `BACKENDS` with their generation, by Service port, address and
    /// port.
    backends: Index<(u32, F::Addr, u16), (u32, u32)>,
}

impl<'a, F: KernelFamily> Rows<'a, F> {
    fn of(tables: &'a Tables<F>) -> Self {
        let used = (0..)
            .zip(&tables.backends)
            .filter(|(_, backend)| backend.flags & Backend::<F::Addr>::USED != 0);
        let backends = used.map(|(row, backend)| {
            let place = (row, backend.generation);
            ((backend.service, backend.addr, backend.port.get()), place)
        });
        Self {
            tables,
            backends: backends.collect(),
        }
    }

    /// The flow with our rows. One whose backend we do not have gets none: TCP
    /// goes on, other protocols find another one.
    fn adapt(&self, key: FlowKey<F::Addr>, mut flow: Flow<F::Addr>) -> Flow<F::Addr> {
        let (port, protocol) = (flow.frontend_port, key.protocol);
        let keys = [
            FrontendKey::new(flow.frontend_addr, port, protocol),
            FrontendKey::node_port(port, protocol),
        ];
        let backend = |service| (service, flow.backend_addr, flow.backend_port.get());
        let found = keys.iter().find_map(|key| {
            let service = self.tables.frontends.get(key)?.service;
            Some((service, self.backends.get(&backend(service))?))
        });
        let (service, (row, generation)) = match found {
            Some((service, place)) => (service, *place),
            None => (Frontend::NO_SERVICE, (0, 0)),
        };
        flow.service = service;
        flow.backend = row;
        flow.generation = generation;
        flow
    }
}
