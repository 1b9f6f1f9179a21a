//! More open sockets than a process may have: threads with descriptors of their own.

use std::io;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Threads that `sockets` are shared out to, so that each may open its part and half
/// as many more.
pub(super) fn threads_for(sockets: usize) -> Result<usize> {
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).context("raise the limit of open files")?;
    let part = usize::try_from(limit).unwrap_or(usize::MAX) / 3 * 2;
    Ok(sockets.div_ceil(part.max(1)))
}

/// Gives the calling thread a table of descriptors of its own, with the first three
/// only. What it opens must be closed on this thread, and what it held before is gone:
/// so no other thread's pipes are kept open.
pub(super) fn start_afresh() -> io::Result<()> {
    // SAFETY: plain integers. The caller holds no descriptor that it would close or
    // use afterwards.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
