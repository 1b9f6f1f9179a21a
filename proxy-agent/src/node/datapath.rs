//! The loaded datapath, as the controllers use it.

use super::devices::KernelAttach;
use crate::dataplane::{
    attach::{Mode, clsact::Filters},
    load::Loaded,
    pins::Pins,
};

/// The loaded programs and tables, and how programs are attached.
pub(super) struct Datapath {
    pub loaded: Loaded,
    pub pins: Pins,
    pub mode: Mode,
    pub filters: Filters,
}

impl Datapath {
    /// Attaches the programs to devices.
    pub(super) fn attach(&mut self) -> KernelAttach<'_> {
        KernelAttach {
            ebpf: &mut self.loaded.ebpf,
            pins: &self.pins,
            filters: &self.filters,
            mode: self.mode,
        }
    }
}
