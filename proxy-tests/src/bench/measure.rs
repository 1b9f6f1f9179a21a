//! Two ways to time a program.
//!
//! [`repeated`] runs it on one packet, many times within one system call:
//! everything is in the caches, the figure is the work itself. [`single`] runs
//! it once for each of many packets and takes the kernel's own statistics of
//! its running time: between two runs the system call uses the caches too, as
//! other work would.

use std::time::Instant;

use anyhow::{Context as _, Result};
use aya::{
    programs::{TestRun as _, TestRunOptions},
    sys::{Stats, enable_stats},
};

use crate::packet::Datapath;

/// Runs within one system call: few enough for a good chance that nothing else
/// gets the CPU meanwhile.
const REPEAT: u32 = 50_000;
/// Of many measurements the best one is disturbed least.
const ROUNDS: u32 = 100;

/// Nanoseconds a run of `program` takes on `packet`, hot.
pub(crate) fn repeated(datapath: &Datapath, program: &str, packet: &[u8]) -> Result<f64> {
    let program = datapath.program(program);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let options = TestRunOptions {
            data_in: Some(packet),
            repeat: REPEAT,
            ..TestRunOptions::new()
        };
        let start = Instant::now();
        program.test_run(options).context("test run")?;
        let elapsed = start.elapsed();
        best = best.min(elapsed.as_secs_f64() * 1e9 / f64::from(REPEAT));
    }
    Ok(best)
}

/// Nanoseconds a run of `program` takes on average over `packets`, one after
/// the other; the best of `rounds` rounds.
pub(crate) fn single(
    datapath: &Datapath,
    program: &str,
    packets: &[Vec<u8>],
    rounds: u32,
) -> Result<f64> {
    let _enabled = enable_stats(Stats::RunTime).context("enable run-time statistics")?;
    let program = datapath.program(program);
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let before = program.info()?;
        for packet in packets {
            let options = TestRunOptions {
                data_in: Some(packet),
                ..TestRunOptions::new()
            };
            program.test_run(options).context("test run")?;
        }
        let after = program.info()?;
        let time = after.run_time().saturating_sub(before.run_time());
        let runs = u32::try_from(after.run_count() - before.run_count())?;
        best = best.min(time.as_secs_f64() * 1e9 / f64::from(runs.max(1)));
    }
    Ok(best)
}
