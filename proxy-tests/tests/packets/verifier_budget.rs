//! The part of the verifier's budget that each program uses up.
//!
//! It gives up after a million instructions, and other kernels follow more
//! paths than this one.

use anyhow::{Context, Result, ensure};
use aya::programs::Program;
use proxy_agent::dataplane::{
    load::{self, LoadOptions, Sizes},
    pins::Pins,
};
use proxy_common::masquerade::PortRange;
use proxy_tests::{bpffs::PinDirectory, name};
use rstest::rstest;

/// Instructions that the verifier may look at.
const BUDGET: u32 = 250_000;

/// Without log lines, and with all that operators can ask for.
#[rstest]
fn every_program_leaves_room(#[values(0, 4)] log_level: u8) -> Result<()> {
    let directory = PinDirectory::reserve(&name::unique())?;
    let mut loaded = load::load(&LoadOptions {
        pins: Pins::new(directory.path()),
        sizes: Sizes {
            services: 64,
            endpoints: 64,
            flows: 64,
            ..Sizes::DEFAULT
        },
        masquerade_ports: PortRange::UNPRIVILEGED,
        log_level,
    })?;
    let mut checked = 0;
    for (name, program) in loaded.ebpf.programs_mut() {
        let info = match program {
            Program::SchedClassifier(program) => program.info(),
            Program::CgroupSockAddr(program) => {
                program.load().with_context(|| name.to_owned())?;
                program.info()
            }
            _ => continue,
        };
        // Programs for measurements are not loaded.
        let Ok(info) = info else { continue };
        let verified = info
            .verified_instruction_count()
            .context("a kernel that tells (5.16)")?;
        ensure!(verified <= BUDGET, "{name}: {verified} instructions");
        checked += 1;
    }
    ensure!(checked >= 18, "only {checked} programs");
    Ok(())
}
