//! Names that tests and demo give to things of the kernel.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// A short name that nobody else on this machine gives:
/// `tandem-<process>-<counter>`. `cargo xtask clean --leftovers` removes what
/// bears it, or it and more behind a hyphen, once the process is gone.
pub fn unique() -> String {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let number = GIVEN.fetch_add(1, Ordering::Relaxed);
    format!("tandem-{:x}-{number:x}", process::id())
}
