//! Capabilities of the processes that a test starts.

use std::io;

use anyhow::{Context as _, Result, ensure};

/// Those that the `DaemonSet` asks for, as Kubernetes calls them, with their
/// numbers in capability.h.
const KNOWN: [(&str, libc::c_ulong); 4] = [
    ("NET_ADMIN", 12),
    ("SYS_ADMIN", SYS_ADMIN),
    ("PERFMON", 38),
    ("BPF", 39),
];
const SYS_ADMIN: libc::c_ulong = 21;

/// Takes away `SYS_ADMIN` from all programs that the calling thread starts:
/// those of root get what is in the thread's bounding set.
pub fn drop_sys_admin() -> Result<()> {
    set("drop a capability", libc::PR_CAPBSET_DROP, SYS_ADMIN)
}

/// Takes away all but these, in the same way.
pub fn keep(names: &[&str]) -> Result<()> {
    let number = |name: &&str| {
        let known = KNOWN.iter().find(|(known, _)| known == name);
        known.map(|(_, number)| *number).context((*name).to_owned())
    };
    let kept = names.iter().map(number).collect::<Result<Vec<_>>>()?;
    // The kernel says how many it knows.
    let all = (0..).take_while(|&number| {
        // SAFETY: takes a number and changes nothing.
        unsafe { libc::prctl(libc::PR_CAPBSET_READ, number) >= 0 }
    });
    all.filter(|number| !kept.contains(number))
        .try_for_each(|number| set("drop a capability", libc::PR_CAPBSET_DROP, number))
}

/// No program that the calling thread starts gets more than the thread has
/// (`allowPrivilegeEscalation: false`).
pub fn gain_no_more() -> Result<()> {
    set("forbid to gain privileges", libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn set(what: &str, option: libc::c_int, value: libc::c_ulong) -> Result<()> {
    // SAFETY: takes numbers, and changes nothing but what this thread may do.
    let result = unsafe { libc::prctl(option, value, 0, 0, 0) };
    ensure!(result == 0, "{what}: {}", io::Error::last_os_error());
    Ok(())
}
