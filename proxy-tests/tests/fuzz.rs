//! What must hold of every packet, tried with packets by chance.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use proxy_tests::fuzz;

/// Enough for most of what a change can break; `cargo xtask fuzz` has more time.
const TIME: Duration = Duration::from_secs(20);

#[test]
fn packets_by_chance_are_treated_as_they_should_be() -> Result<()> {
    let seed = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    match fuzz::run(seed, TIME) {
        Ok(report) => println!("seed {seed}: {report}"),
        Err(failure) => panic!("{failure}"),
    }
    Ok(())
}

#[test]
fn what_was_mended_stays_so() -> Result<()> {
    fuzz::replay()
}
