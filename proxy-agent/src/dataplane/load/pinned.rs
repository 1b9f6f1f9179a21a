//! The programs' pins. An agent that finds those of its own build there takes them as they
//! are, which saves it the verifier's time; all others are loaded, and pinned in their
//! places.

use std::{
    fs,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    path::PathBuf,
};

use aya::{
    Ebpf,
    programs::{CgroupSockAddr, CgroupSockAddrAttachType, Program, ProgramError, SchedClassifier},
};

use super::{Globals, HOOK_PROGRAMS, LoadError, LoadOptions, OBJECT, SLOW_PROGRAMS};
use crate::dataplane::{maps::Maps as _, pins::Pins, stale, sweep};

/// The programs that the agent loads at any rate: those of the hooks of devices, of the
/// slow path, and those that it runs itself.
pub fn device_programs() -> impl Iterator<Item = &'static str> {
    HOOK_PROGRAMS
        .into_iter()
        .chain(SLOW_PROGRAMS)
        .chain([sweep::PROGRAM, stale::PROGRAM])
}

/// Where this agent's programs come from.
#[derive(Debug)]
pub struct Programs {
    pins: Pins,
    /// Of the object, what it is told, and the maps that it is loaded on.
    identity: u64,
    are_pinned: bool,
}

impl Programs {
    /// Compares what is pinned with what would be loaded, on maps that are pinned already.
    pub(super) fn of(options: &LoadOptions) -> Result<Self, LoadError> {
        let pins = options.pins.clone();
        // A map that took the place of a smaller one has another id: programs on the
        // smaller one are not those that are wanted.
        let ids: Vec<_> = Pins::tables()
            .map(
                |(_, table)| match pins.open(&table).and_then(|map| map.info()) {
                    Ok(info) => Ok(info.id()),
                    Err(source) => Err(LoadError::Size { table, source }),
                },
            )
            .collect::<Result<_, _>>()?;
        let globals = Globals::new(options.masquerade_ports, options.log_level);
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let identity = hasher.hash_one((OBJECT, globals, ids));
        let is_same = pins.programs_identity() == Some(identity);
        let are_pinned = is_same
            && !globals.log()
            && device_programs().all(|name| pins.programs().join(name).exists());
        if !are_pinned {
            pins.state_programs_identity(None)
                .map_err(LoadError::Identity)?;
        }
        Ok(Self {
            pins,
            identity,
            are_pinned,
        })
    }

    /// Returns whether those of an earlier agent were taken as they are.
    pub fn are_pinned(&self) -> bool {
        self.are_pinned
    }

    /// Loads a program, or opens the one that is pinned.
    pub(super) fn load(&self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
        if let Some(path) = self.pin_of(name) {
            let program = SchedClassifier::from_pin(path);
            let program = program.map_err(|source| LoadError::Program {
                program: name,
                source,
            })?;
            *ebpf.program_mut(name).ok_or(LoadError::Missing { name })? =
                Program::SchedClassifier(program);
            return Ok(());
        }
        super::load_program(ebpf, name)
    }

    /// Opens the pinned program of a call, if it is one that is wanted.
    pub fn open_call(
        &self,
        name: &str,
        call: CgroupSockAddrAttachType,
    ) -> Option<Result<CgroupSockAddr, ProgramError>> {
        self.pin_of(name)
            .map(|path| CgroupSockAddr::from_pin(path, call))
    }

    fn pin_of(&self, name: &str) -> Option<PathBuf> {
        let path = self.pins.programs().join(name);
        (self.are_pinned && path.exists()).then_some(path)
    }

    /// Says that all pinned programs are this agent's. To be called when they are.
    pub fn state(&self) -> Result<(), LoadError> {
        if self.pins.programs_identity() == Some(self.identity) {
            return Ok(());
        }
        self.pins
            .state_programs_identity(Some(self.identity))
            .map_err(LoadError::Identity)
    }
}

/// Pins programs in the place of those that an earlier agent left.
pub fn pin(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), LoadError> {
    let path = pins.programs();
    fs::create_dir_all(&path).map_err(|source| LoadError::Folder { path, source })?;
    for name in device_programs() {
        let path = pins.programs().join(name);
        // Absent the first time.
        let _ = fs::remove_file(&path);
        ebpf.program_mut(name)
            .ok_or(LoadError::Missing { name })?
            .pin(&path)
            .map_err(|source| LoadError::Pin {
                program: name,
                source,
            })?;
    }
    Ok(())
}
