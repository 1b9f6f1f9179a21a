//! Runs the sweeper and reads what it found.

use aya::{
    Ebpf,
    maps::{Array, Map, MapError},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};

/// Result of one sweep of one family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows in the table.
    pub flows: u32,
    /// Flows removed by the sweep.
    pub expired: u32,
}

// SAFETY: two integers without padding.
unsafe impl aya::Pod for Swept {}

/// A sweep that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error("the eBPF object has no sweep program")]
    Missing,
    #[error("run the sweep program")]
    Run(#[source] ProgramError),
    #[error("read table SWEEPS")]
    Read(#[source] MapError),
}

/// Removes idle flows of both families. Returns what is left, IPv4 first.
pub fn sweep(ebpf: &mut Ebpf) -> Result<[Swept; 2], SweepError> {
    let program: &mut SchedClassifier = ebpf
        .program_mut("sweep")
        .and_then(|program| program.try_into().ok())
        .ok_or(SweepError::Missing)?;
    // The program looks at no packet, but the kernel wants one.
    let packet = [0; 64];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&packet);
    program.test_run(options).map_err(SweepError::Run)?;
    let map: &Map = ebpf.map("SWEEPS").ok_or(SweepError::Missing)?;
    let sweeps: Array<_, Swept> = Array::try_from(map).map_err(SweepError::Read)?;
    Ok([
        sweeps.get(&0, 0).map_err(SweepError::Read)?,
        sweeps.get(&1, 0).map_err(SweepError::Read)?,
    ])
}
