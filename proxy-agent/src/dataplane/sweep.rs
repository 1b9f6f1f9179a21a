//! Runs the sweeper and reads what it found.

use proxy_common::table::Table;
use std::borrow::Borrow;

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};

/// The program's name.
pub(super) const PROGRAM: &str = "sweep";

/// Result of one sweep of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows in the table.
    pub flows: u32,
    /// Flows removed by the sweep.
    pub expired: u32,
    /// Reply tuples of masqueraded flows in their table.
    pub reply_tuples: u32,
}

/// Value of `SWEEPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    flows: u32,
    expired: u32,
}

// SAFETY: two integers without padding.
unsafe impl aya::Pod for Row {}

/// A sweep that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error("the eBPF object has no sweep program")]
    Missing,
    #[error("run the sweep program")]
    Run(#[source] ProgramError),
    #[error("read the tables of the sweep")]
    Read(#[source] MapError),
}

/// The tables that sweeps report in, `SWEEPS` and `SWEPT_MASQ`.
pub(super) struct Reports<T> {
    sweeps: Array<T, Row>,
    reply_tuples: Array<T, u32>,
}

impl<T: Borrow<MapData>> Reports<T> {
    pub(super) fn open<M>(sweeps: M, reply_tuples: M) -> Result<Self, MapError>
    where
        Array<T, Row>: TryFrom<M, Error = MapError>,
        Array<T, u32>: TryFrom<M, Error = MapError>,
    {
        Ok(Self {
            sweeps: sweeps.try_into()?,
            reply_tuples: reply_tuples.try_into()?,
        })
    }

    /// The last sweep of a family: 0 is IPv4, 1 is IPv6.
    pub(super) fn read(&self, family: u32) -> Result<Swept, MapError> {
        let Row { flows, expired } = self.sweeps.get(&family, 0)?;
        Ok(Swept {
            flows,
            expired,
            reply_tuples: self.reply_tuples.get(&family, 0)?,
        })
    }
}

/// Removes idle flows of both families. Returns what is left, IPv4 first.
pub fn sweep(ebpf: &mut Ebpf) -> Result<[Swept; 2], SweepError> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(SweepError::Missing)?;
    // The program looks at no packet, but the kernel wants one.
    let packet = [0; 64];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&packet);
    program.test_run(options).map_err(SweepError::Run)?;
    let map = |name| ebpf.map(name).ok_or(SweepError::Missing);
    let reports = Reports::open(
        map(Table::Sweeps.name())?,
        map(Table::SweptMasquerades.name())?,
    )
    .map_err(SweepError::Read)?;
    let read = |family| reports.read(family).map_err(SweepError::Read);
    Ok([read(0)?, read(1)?])
}
