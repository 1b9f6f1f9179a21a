//! The programs on a device's hooks, in the order they run, each marked as ours
//! or not.
//!
//! A tcx program is ours if it has the name of one of our hook programs and uses
//! a table that is pinned below our bpf root. Names alone do not tell: others
//! call their programs `ingress` too. Neither do the pinned programs: an agent
//! that died while it started has attached programs that it never pinned.
//! [`Filter`]s are known by their place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use crate::dataplane::{
    attach::{
        Hook, Mode,
        clsact::{Filter, Filters},
    },
    load::HOOK_PROGRAMS,
};
use aya::{
    maps::MapInfo,
    programs::{ProgramError, SchedClassifier, loaded_programs},
    sys::SyscallError,
};

/// The hooks cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HooksError {
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    #[error(
        "not allowed to ask for the programs on device {device}: that needs the capability SYS_ADMIN"
    )]
    Forbidden {
        device: String,
        #[source]
        source: ProgramError,
    },
    #[error("list the filters of device {device}")]
    Filters {
        device: String,
        #[source]
        source: rtnetlink::Error,
    },
}

/// A program on a device's hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub id: u32,
    pub name: String,
    pub ours: bool,
    /// The way it is attached.
    pub mode: Mode,
}

/// Reads hooks.
pub struct Hooks {
    filters: Filters,
    programs: Programs,
}

/// The programs that are loaded in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Programs {
    names: BTreeMap<u32, String>,
    ours: BTreeSet<u32>,
}

impl Hooks {
    /// Opens a connection on the current runtime. Ours are the programs that
    /// use tables below `bpf_root`, of whatever layout version.
    pub fn open(bpf_root: &Path) -> Result<Self, HooksError> {
        Ok(Self {
            filters: Filters::open().map_err(HooksError::Open)?,
            programs: Programs::read(&pinned_maps(bpf_root)),
        })
    }

    /// The programs of one hook, in the order they run: tcx comes before
    /// filters. Fails if there are any and this process may not see them.
    pub async fn programs(
        &self,
        device: &str,
        ifindex: u32,
        hook: Hook,
    ) -> Result<Vec<Attached>, HooksError> {
        let tcx = match SchedClassifier::query_tcx(device, hook.attach_type()) {
            Ok((_, programs)) => programs,
            Err(source) if is_forbidden(&source) => {
                return Err(HooksError::Forbidden {
                    device: device.to_owned(),
                    source,
                });
            }
            // Kernels without tcx do not know the question: no program is
            // there. Neither is one on a device that went meanwhile.
            Err(_) => Vec::new(),
        };
        let tcx = tcx.iter().map(|program| {
            let name = program.name_as_str().unwrap_or_default();
            self.programs.tcx(program.id(), name)
        });
        let filters = self.filters.list(ifindex, hook).await;
        let filters = filters.map_err(|source| HooksError::Filters {
            device: device.to_owned(),
            source,
        })?;
        let filters = filters
            .iter()
            .filter_map(|filter| self.programs.filter(filter));
        Ok(tcx.chain(filters).collect())
    }
}

impl Programs {
    fn read(maps: &BTreeSet<u32>) -> Self {
        let mut programs = Self::default();
        // A program that goes while the list is read is skipped.
        for program in loaded_programs().filter_map(Result::ok) {
            let name = program.name_as_str().unwrap_or_default();
            let uses_ours = || {
                let used = program.map_ids().ok().flatten().unwrap_or_default();
                used.iter().any(|map| maps.contains(map))
            };
            if HOOK_PROGRAMS.contains(&name) && uses_ours() {
                programs.ours.insert(program.id());
            }
            programs.names.insert(program.id(), name.to_owned());
        }
        programs
    }

    fn tcx(&self, id: u32, name: &str) -> Attached {
        Attached {
            id,
            name: self.name(id, name).to_owned(),
            ours: self.ours.contains(&id),
            mode: Mode::Tcx,
        }
    }

    fn filter(&self, filter: &Filter) -> Option<Attached> {
        let id = filter.program?;
        Some(Attached {
            id,
            name: self.name(id, &filter.name).to_owned(),
            ours: filter.is_ours(),
            mode: Mode::Clsact,
        })
    }

    /// The kernel's name of a program, else what the hook says.
    fn name<'a>(&'a self, id: u32, hook: &'a str) -> &'a str {
        self.names.get(&id).map_or(hook, String::as_str)
    }
}

/// Returns whether the kernel refused for lack of privileges.
fn is_forbidden(error: &ProgramError) -> bool {
    matches!(
        error,
        ProgramError::SyscallError(SyscallError { io_error, .. })
            if io_error.kind() == io::ErrorKind::PermissionDenied
    )
}

/// Ids of all maps that are pinned below a bpf root.
fn pinned_maps(bpf_root: &Path) -> BTreeSet<u32> {
    let list = |path: &Path| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
    };
    list(bpf_root)
        .flat_map(|layout| list(&layout.path().join("maps")))
        .filter_map(|pin| MapInfo::from_pin(pin.path()).ok())
        .map(|map| map.id())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_known_by_id_whatever_the_hook_says() {
        let programs = Programs {
            names: BTreeMap::from([(7, "ingress".to_owned())]),
            ours: BTreeSet::from([7]),
        };
        let ours = programs.tcx(7, "renamed");
        assert!(ours.ours && ours.name == "ingress");
        assert!(!programs.tcx(8, "ingress").ours);
    }
}
