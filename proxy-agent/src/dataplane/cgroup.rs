//! Puts the socket programs on a cgroup and takes them off.
//!
//! Links are pinned by the cgroup's id and the call. A cgroup may have any
//! number of programs for a call, and all of them run: others' stay.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, CgroupSockAddrAttachType, ProgramError,
        links::{FdLink, LinkError},
    },
};

use crate::dataplane::{bpf, load::Loaded, pins::Pins};

/// The socket programs, each named after its call. They are attached in this order: those that
/// give frontends back before those that take them away.
const CALLS: [(&str, CgroupSockAddrAttachType); 8] = [
    ("recvmsg4", CgroupSockAddrAttachType::UDPRecvMsg4),
    ("recvmsg6", CgroupSockAddrAttachType::UDPRecvMsg6),
    ("getpeername4", CgroupSockAddrAttachType::GetPeerName4),
    ("getpeername6", CgroupSockAddrAttachType::GetPeerName6),
    ("sendmsg4", CgroupSockAddrAttachType::UDPSendMsg4),
    ("sendmsg6", CgroupSockAddrAttachType::UDPSendMsg6),
    ("connect4", CgroupSockAddrAttachType::Connect4),
    ("connect6", CgroupSockAddrAttachType::Connect6),
];

/// The socket programs cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("the eBPF object has no program {0}")]
    Missing(&'static str),
    #[error("load eBPF program {program}")]
    Load {
        program: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("open cgroup {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("attach eBPF program {program} to the cgroup")]
    Attach {
        program: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("take over the link")]
    Link(#[source] LinkError),
    #[error("create folder {path} for pins")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("pin {path}")]
    Pin {
        path: PathBuf,
        #[source]
        source: aya::pin::PinError,
    },
    #[error("remove the pin {path}")]
    Unpin {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Loads the programs and attaches them to a cgroup, or swaps them in where an earlier
/// agent's are, and takes ours off any other cgroup.
pub fn attach(loaded: &mut Loaded, pins: &Pins, path: &Path) -> Result<(), CgroupError> {
    // All of them before any is attached.
    for (name, call) in CALLS {
        let failed = |source| CgroupError::Load {
            program: name,
            source,
        };
        let program = program(&mut loaded.ebpf, name)?;
        match loaded.programs.open_call(name, call) {
            Some(pinned) => *program = pinned.map_err(failed)?,
            None => program.load().map_err(failed)?,
        }
    }
    put_in_place(&mut loaded.ebpf, pins, path)?;
    loaded.cgroup = Some(path.to_owned());
    Ok(())
}

/// Attaches programs again whose links somebody has removed; returns whether
/// any were.
pub fn attach_again(loaded: &mut Loaded, pins: &Pins) -> Result<bool, CgroupError> {
    let Some(path) = &loaded.cgroup else {
        return Ok(false);
    };
    let cgroup = fs::metadata(path).map_err(|source| CgroupError::Open {
        path: path.clone(),
        source,
    })?;
    let is_there = |name: &str| {
        link_path(pins, cgroup.ino(), name).exists() && pins.programs().join(name).exists()
    };
    if CALLS.iter().all(|(name, _)| is_there(name)) {
        return Ok(false);
    }
    put_in_place(&mut loaded.ebpf, pins, path)?;
    Ok(true)
}

fn put_in_place(ebpf: &mut Ebpf, pins: &Pins, path: &Path) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Open {
        path: path.to_owned(),
        source,
    };
    let cgroup = File::open(path).map_err(failed)?;
    let id = cgroup.metadata().map_err(failed)?.ino();
    for folder in [pins.links(), pins.programs()] {
        fs::create_dir_all(&folder).map_err(|source| CgroupError::Folder {
            path: folder,
            source,
        })?;
    }
    for (name, _) in CALLS {
        attach_program(
            program(ebpf, name)?,
            name,
            &cgroup,
            &link_path(pins, id, name),
        )?;
        let pin = pins.programs().join(name);
        // Absent the first time.
        let _ = fs::remove_file(&pin);
        program(ebpf, name)?
            .pin(&pin)
            .map_err(|source| CgroupError::Pin { path: pin, source })?;
    }
    let current = format!("{PREFIX}{id}-");
    unpin_all(&pins.links(), |name| {
        name.starts_with(PREFIX) && !name.starts_with(&current)
    })
}

fn attach_program(
    program: &mut CgroupSockAddr,
    name: &'static str,
    cgroup: &File,
    pin: &Path,
) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Attach {
        program: name,
        source,
    };
    if pin.exists() {
        let fd = program.fd().map_err(failed)?;
        let swapped =
            bpf::open_pinned(pin).and_then(|link| bpf::update_link(link.as_fd(), fd.as_fd()));
        if swapped.is_ok() {
            return Ok(());
        }
        // A link whose cgroup is gone: its id was given to another one.
        unpin(pin)?;
    }
    // A link of this mode always shares the cgroup with others.
    let id = program
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(failed)?;
    let link: FdLink = program
        .take_link(id)
        .map_err(failed)?
        .try_into()
        .map_err(CgroupError::Link)?;
    link.pin(pin).map(drop).map_err(|source| CgroupError::Pin {
        path: pin.to_owned(),
        source,
    })
}

/// Returns whether our programs are on a cgroup.
pub fn is_attached(pins: &Pins) -> bool {
    let entries = fs::read_dir(pins.links()).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .any(|name| name.starts_with(PREFIX))
}

/// Takes our programs off every cgroup.
pub fn detach(loaded: &mut Loaded, pins: &Pins) -> Result<(), CgroupError> {
    loaded.cgroup = None;
    unpin_all(&pins.links(), |name| name.starts_with(PREFIX))?;
    unpin_all(&pins.programs(), |name| {
        CALLS.iter().any(|(program, _)| *program == name)
    })
}

/// Prefix of the names of our links' pins.
const PREFIX: &str = "cgroup-";

fn link_path(pins: &Pins, cgroup: u64, call: &str) -> PathBuf {
    pins.links().join(format!("{PREFIX}{cgroup}-{call}"))
}

fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, CgroupError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(CgroupError::Missing(name))
}

fn unpin_all(folder: &Path, is_unwanted: impl Fn(&str) -> bool) -> Result<(), CgroupError> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(&is_unwanted) {
            unpin(&entry.path())?;
        }
    }
    Ok(())
}

/// Removing the last reference to a link detaches its program.
fn unpin(path: &Path) -> Result<(), CgroupError> {
    fs::remove_file(path).map_err(|source| CgroupError::Unpin {
        path: path.to_owned(),
        source,
    })
}
