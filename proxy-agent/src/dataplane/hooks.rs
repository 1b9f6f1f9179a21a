//! Which programs sit on a device's hooks, in the order they run, and which of
//! them are ours.
//!
//! A program is ours if it has the name of one of our hook programs and uses a
//! table that is pinned below our bpf root. Names alone do not tell: others
//! call their programs `ingress` too. Neither do the pinned programs: an agent
//! that died while it started has attached programs that it never pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use aya::{
    maps::MapInfo,
    programs::{ProgramError, SchedClassifier, loaded_programs},
    sys::SyscallError,
};
use futures::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::new_connection;

use crate::dataplane::{
    attach::{Hook, Mode},
    load::HOOK_PROGRAMS,
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
    pub place: Place,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Tcx,
    /// A filter of the clsact qdisc.
    Filter {
        priority: u16,
        handle: u32,
    },
}

impl Place {
    /// The way of attaching that leads there.
    pub fn mode(self) -> Mode {
        match self {
            Self::Tcx => Mode::Tcx,
            Self::Filter { .. } => Mode::Clsact,
        }
    }
}

/// Reads hooks.
pub struct Hooks {
    netlink: rtnetlink::Handle,
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
        let (connection, netlink, _) = new_connection().map_err(HooksError::Open)?;
        tokio::spawn(connection);
        Ok(Self {
            netlink,
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
            self.programs.attached(program.id(), name, Place::Tcx)
        });
        let filters = self.filters(device, ifindex, hook).await?;
        let filters = filters.iter().filter_map(filter);
        let filters = filters.map(|(id, name, place)| self.programs.attached(id, &name, place));
        Ok(tcx.chain(filters).collect())
    }

    async fn filters(
        &self,
        device: &str,
        ifindex: u32,
        hook: Hook,
    ) -> Result<Vec<TcMessage>, HooksError> {
        let mut filters = self.netlink.traffic_filter(ifindex.cast_signed());
        let request = match hook {
            Hook::Ingress => filters.get().ingress(),
            Hook::Egress => filters.get().egress(),
        };
        request
            .execute()
            .try_collect()
            .await
            .map_err(|source| HooksError::Filters {
                device: device.to_owned(),
                source,
            })
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

    /// `name` is what the hook says; the kernel's name of the program counts.
    fn attached(&self, id: u32, name: &str, place: Place) -> Attached {
        Attached {
            id,
            name: self.names.get(&id).map_or(name, String::as_str).to_owned(),
            ours: self.ours.contains(&id),
            place,
        }
    }
}

/// Whether the kernel refused for lack of privileges.
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

/// Program id, name and place of a BPF filter.
fn filter(message: &TcMessage) -> Option<(u32, String, Place)> {
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    let mut id = None;
    let mut name = String::new();
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(found)) => id = Some(*found),
            TcOption::Bpf(TcFilterBpfOption::ProgName(found)) => name.clone_from(found),
            _ => {}
        }
    }
    let handle = message.header.handle;
    let place = Place::Filter {
        priority: u16::try_from(message.header.info >> 16).unwrap_or_default(),
        handle: u32::from(handle.major) << 16 | u32::from(handle.minor),
    };
    Some((id?, name, place))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::tc::{TcHandle, TcHeader};

    use super::*;

    fn message(options: Vec<TcOption>) -> TcMessage {
        let mut message = TcMessage::default();
        message.header = TcHeader {
            handle: TcHandle::from(0x7a0d),
            info: 1 << 16 | 0x0300,
            ..TcHeader::default()
        };
        message.attributes = vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Options(options),
        ];
        message
    }

    #[test]
    fn filters_with_a_program_are_read() {
        let found = filter(&message(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgName("ingress".to_owned())),
            TcOption::Bpf(TcFilterBpfOption::ProgId(7)),
        ]));
        let place = Place::Filter {
            priority: 1,
            handle: 0x7a0d,
        };
        assert_eq!(found, Some((7, "ingress".to_owned(), place)));
        assert_eq!(filter(&message(Vec::new())), None, "the head of the list");
    }

    #[test]
    fn ours_are_known_by_id_whatever_the_filter_is_called() {
        let programs = Programs {
            names: BTreeMap::from([(7, "ingress".to_owned())]),
            ours: BTreeSet::from([7]),
        };
        let ours = programs.attached(7, "renamed", Place::Tcx);
        assert!(ours.ours && ours.name == "ingress");
        assert!(!programs.attached(8, "ingress", Place::Tcx).ours);
    }
}
