//! Waiting without sleeping for a fixed time.

use std::{
    env,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Time between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Factor for all limits, on a machine that is emulated.
static PATIENCE: LazyLock<u32> = LazyLock::new(|| {
    let set = env::var("TANDEM_PATIENCE").ok();
    set.map_or(1, |times| {
        times.parse().expect("TANDEM_PATIENCE is a number")
    })
});

/// Repeats `attempt` until it succeeds; after `limit`, or on an emulated
/// machine after `TANDEM_PATIENCE` times that, returns its last error.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let limit = limit * *PATIENCE;
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}
