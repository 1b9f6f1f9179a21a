//! Puts the programs on devices and takes them off.
//!
//! tcx links are pinned by ifindex and hook: the pin keeps the program there
//! when the agent is gone, and a new agent swaps its own program in without a
//! gap. Kernels without tcx (before 6.6) use [`clsact`] filters.

pub mod clsact;

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, SchedClassifierLink, TcAttachOptions},
    },
};

use self::clsact::Filters;
use crate::{dataplane::pins::Pins, sys::kernel};

/// First kernel with tcx.
pub const TCX_SINCE: (u32, u32) = (6, 6);

/// The way programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Tcx,
    Clsact,
}

impl Mode {
    /// The way's name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// Returns the best mode of the running kernel.
    pub fn best() -> Self {
        if kernel::version() >= TCX_SINCE {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

/// A device's hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    /// Both hooks, in the order in which they are set up: egress first, so that replies of the
    /// flows that ingress opens meet a program.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// The hook's name in pins and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub(super) fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// The program for devices with or without Ethernet header.
    fn program(self, layer3: bool) -> &'static str {
        match (self, layer3) {
            (Self::Ingress, false) => "ingress",
            (Self::Egress, false) => "egress",
            (Self::Ingress, true) => "ingress_l3",
            (Self::Egress, true) => "egress_l3",
        }
    }
}

/// A device to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub name: &'a str,
    pub ifindex: u32,
    /// Its packets have no Ethernet header.
    pub layer3: bool,
}

/// A hook that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the eBPF object has no program {0}")]
    Missing(&'static str),
    #[error("add the clsact qdisc")]
    Qdisc(#[source] tc::TcError),
    #[error("list the filters")]
    List(#[source] rtnetlink::Error),
    #[error(
        "a filter of somebody else ({0:?}) has the priority and handle of ours; remove it or give it others"
    )]
    Taken(String),
    #[error("attach the program")]
    Attach(#[source] ProgramError),
    #[error("detach the program")]
    Detach(#[source] ProgramError),
    #[error("take over the link")]
    Link(#[source] LinkError),
    #[error("create folder {path} for pins")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("pin the link at {path}")]
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

/// Attaches both programs to a device, or swaps them in where ours or an
/// earlier agent's are; returns whether both were there. Programs that were
/// attached the other way go: after ours are there, so that there is no gap.
pub async fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    filters: &Filters,
    mode: Mode,
    target: &Target<'_>,
) -> Result<bool, AttachError> {
    let mut were_there = true;
    for hook in Hook::BOTH {
        let name = hook.program(target.layer3);
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::Missing(name))?;
        were_there &= match mode {
            Mode::Tcx => attach_tcx(program, pins, hook, target)?,
            Mode::Clsact => filters.attach(program, hook, target).await?,
        };
    }
    match mode {
        Mode::Tcx => filters.remove_ours(target).await?,
        Mode::Clsact => forget(pins, target.ifindex)?,
    }
    Ok(were_there)
}

fn attach_tcx(
    program: &mut SchedClassifier,
    pins: &Pins,
    hook: Hook,
    target: &Target<'_>,
) -> Result<bool, AttachError> {
    let path = link_path(pins, target.ifindex, hook);
    if path.exists() {
        if swap(program, &path).is_ok() {
            return Ok(true);
        }
        // A link whose device is gone: its ifindex was given to another one. Or
        // somebody has detached it.
        unpin(&path)?;
    }
    let links = pins.links();
    fs::create_dir_all(&links).map_err(|source| AttachError::Folder {
        path: links,
        source,
    })?;
    let id = program
        .attach_with_options(
            target.name,
            hook.attach_type(),
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        )
        .map_err(AttachError::Attach)?;
    let link: FdLink = program
        .take_link(id)
        .map_err(AttachError::Attach)?
        .try_into()
        .map_err(AttachError::Link)?;
    link.pin(&path)
        .map(|_| false)
        .map_err(|source| AttachError::Pin { path, source })
}

/// Puts the program in the place of the one at a pinned link.
fn swap(program: &mut SchedClassifier, path: &PathBuf) -> Result<(), AttachError> {
    let link: FdLink = PinnedLink::from_pin(path)
        .map_err(AttachError::Link)?
        .into();
    let link = SchedClassifierLink::try_from(link).map_err(AttachError::Link)?;
    let id = program.attach_to_link(link).map_err(AttachError::Attach)?;
    // The pin holds the link; this is only our handle of it.
    program.take_link(id).map(drop).map_err(AttachError::Attach)
}

/// Takes our programs off a device that is still there, however they were
/// attached.
pub async fn detach(
    pins: &Pins,
    filters: &Filters,
    target: &Target<'_>,
) -> Result<(), AttachError> {
    forget(pins, target.ifindex)?;
    filters.remove_ours(target).await
}

/// Removes the pins of a device that is gone.
pub fn forget(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    for hook in Hook::BOTH {
        let path = link_path(pins, ifindex, hook);
        if path.exists() {
            unpin(&path)?;
        }
    }
    Ok(())
}

/// Returns how many hooks of each device have pinned links, by ifindex.
pub fn pinned_hooks(pins: &Pins) -> BTreeMap<u32, usize> {
    let mut hooks = BTreeMap::new();
    let entries = fs::read_dir(pins.links()).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let ifindex = name.to_str().and_then(|name| name.split_once('-'));
        if let Some(ifindex) = ifindex.and_then(|(ifindex, _)| ifindex.parse().ok()) {
            *hooks.entry(ifindex).or_default() += 1;
        }
    }
    hooks
}

/// Removing the last reference to a link detaches its program.
fn unpin(path: &PathBuf) -> Result<(), AttachError> {
    fs::remove_file(path).map_err(|source| AttachError::Unpin {
        path: path.clone(),
        source,
    })
}

fn link_path(pins: &Pins, ifindex: u32, hook: Hook) -> PathBuf {
    pins.links().join(format!("{ifindex}-{}", hook.name()))
}
