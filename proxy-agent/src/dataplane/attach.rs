//! Puts the programs on devices and takes them off.
//!
//! tcx links are pinned by ifindex and hook: the pin keeps the program there
//! when the agent is gone, and a new agent swaps its own program in without a
//! gap. Kernels without tcx (before 6.6) use clsact filters of fixed priority
//! and handle, which are replaced the same way.

use std::{fs, io, mem, path::PathBuf};

use aya::{
    Ebpf,
    programs::{
        Link, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};

use crate::dataplane::{
    hooks::{Attached, Place},
    load::kernel_version,
    pins::Pins,
};

/// First kernel with tcx.
pub const TCX_SINCE: (u32, u32) = (6, 6);

/// Priority and handle of our clsact filters: first in line, always the same.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7a0d);

/// How programs are attached.
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

    /// What the running kernel can do best.
    pub fn best() -> Self {
        if kernel_version() >= TCX_SINCE {
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
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

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
    #[error("attach the program")]
    Attach(#[source] ProgramError),
    #[error("detach the program")]
    Detach(#[source] ProgramError),
    #[error("take over the link")]
    Link(#[source] LinkError),
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

/// Attaches both programs to a device, or swaps them in where an earlier
/// agent's are.
pub fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    mode: Mode,
    target: &Target<'_>,
) -> Result<(), AttachError> {
    for hook in Hook::BOTH {
        let name = hook.program(target.layer3);
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::Missing(name))?;
        match mode {
            Mode::Tcx => attach_tcx(program, pins, hook, target)?,
            Mode::Clsact => attach_clsact(program, hook, target)?,
        }
    }
    Ok(())
}

fn attach_tcx(
    program: &mut SchedClassifier,
    pins: &Pins,
    hook: Hook,
    target: &Target<'_>,
) -> Result<(), AttachError> {
    let path = link_path(pins, target.ifindex, hook);
    if path.exists() {
        if swap(program, &path).is_ok() {
            return Ok(());
        }
        // A link whose device is gone: its ifindex was given to another one.
        unpin(&path)?;
    }
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
        .map(drop)
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

fn attach_clsact(
    program: &mut SchedClassifier,
    hook: Hook,
    target: &Target<'_>,
) -> Result<(), AttachError> {
    match tc::qdisc_add_clsact(target.name) {
        Ok(()) => {}
        Err(error) if is_already_there(&error) => {}
        Err(error) => return Err(AttachError::Qdisc(error)),
    }
    let existing =
        SchedClassifierLink::attached(target.name, hook.attach_type(), PRIORITY, HANDLE, None)
            .map_err(|error| AttachError::Attach(tc::TcError::IoError(error).into()))?;
    let id = match program.attach_to_link(existing) {
        Ok(id) => id,
        Err(_) => program
            .attach_with_options(
                target.name,
                hook.attach_type(),
                TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: HANDLE,
                    ..NlOptions::default()
                }),
            )
            .map_err(AttachError::Attach)?,
    };
    let link = program.take_link(id).map_err(AttachError::Attach)?;
    // Dropping it would detach the program.
    mem::forget(link);
    Ok(())
}

/// Whether adding a qdisc failed because it is there.
fn is_already_there(error: &tc::TcError) -> bool {
    match error {
        tc::TcError::AlreadyAttached => true,
        tc::TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        tc::TcError::NulError(_)
        | tc::TcError::IoError(_)
        | tc::TcError::InvalidTcxAttach(_)
        | tc::TcError::InvalidLinkOperation => false,
    }
}

/// Takes our programs off a device that is still there.
pub fn detach(pins: &Pins, mode: Mode, target: &Target<'_>) -> Result<(), AttachError> {
    match mode {
        Mode::Tcx => forget(pins, target.ifindex),
        Mode::Clsact => {
            for hook in Hook::BOTH {
                // The device may have gone, and its filters with it.
                let _ = detach_clsact(target.name, hook);
            }
            Ok(())
        }
    }
}

/// Removes the filter in our place of a device's hook. The qdisc stays: others
/// may use it.
pub fn detach_clsact(device: &str, hook: Hook) -> Result<(), AttachError> {
    SchedClassifierLink::attached(device, hook.attach_type(), PRIORITY, HANDLE, None)
        .map_err(|error| tc::TcError::IoError(error).into())
        .and_then(Link::detach)
        .map_err(AttachError::Detach)
}

/// Whether our clsact filter is among the programs of a hook. One of somebody
/// else in the same place is not.
pub fn has_clsact(programs: &[Attached]) -> bool {
    let place = Place::Filter {
        priority: PRIORITY,
        handle: HANDLE.into(),
    };
    programs
        .iter()
        .any(|program| program.ours && program.place == place)
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

/// Ifindexes that have pinned links.
pub fn pinned_devices(pins: &Pins) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(pins.links()) else {
        return Vec::new();
    };
    let mut devices: Vec<u32> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.split_once('-')?.0.parse().ok()
        })
        .collect();
    devices.sort_unstable();
    devices.dedup();
    devices
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::ours(true, 1, 0x7a0d, true)]
    #[case::in_our_place(false, 1, 0x7a0d, false)]
    #[case::another_priority(true, 2, 0x7a0d, false)]
    #[case::another_handle(true, 1, 1, false)]
    fn only_our_own_filter_counts(
        #[case] ours: bool,
        #[case] priority: u16,
        #[case] handle: u32,
        #[case] expected: bool,
    ) {
        let program = Attached {
            id: 1,
            name: "ingress".to_owned(),
            ours,
            place: Place::Filter { priority, handle },
        };
        assert_eq!(has_clsact(&[program]), expected);
    }
}
