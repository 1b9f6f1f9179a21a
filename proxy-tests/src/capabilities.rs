//! What a process that a test starts may do.

use std::io;

use anyhow::{Result, ensure};

/// `CAP_SYS_ADMIN` of capability.h.
const SYS_ADMIN: libc::c_ulong = 21;

/// Takes away `SYS_ADMIN` from all programs that the calling thread starts:
/// those of root get what is in the thread's bounding set.
pub fn drop_sys_admin() -> Result<()> {
    // SAFETY: takes a number and changes nothing but this thread's bounding set.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, SYS_ADMIN) };
    ensure!(
        result == 0,
        "drop a capability: {}",
        io::Error::last_os_error()
    );
    Ok(())
}
