//! Random packets, and the invariants that hold of every packet.

use std::time::Duration;

use anyhow::Result;
use proxy_tests::fuzz;

/// Enough for most of what a change can break; `cargo xtask fuzz` has more time,
/// and new packets each time. These are the same, so that a change fails here by
/// its own fault.
const TIME: Duration = Duration::from_secs(20);
const SEED: u64 = 1;

#[test]
fn packets_by_chance_are_treated_as_they_should_be() {
    match fuzz::run(SEED, TIME) {
        Ok(report) => println!("{report}"),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn what_was_fixed_stays_so() -> Result<()> {
    fuzz::replay()
}
