//! Capabilities of this process.

use std::fs;

use crate::sys::SystemError;

/// Checks that this process may load programs, by its capabilities: root in a container
/// has only those that it was given.
pub fn require_privileges() -> Result<(), SystemError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match missing_capabilities(effective_capabilities(&status).unwrap_or(0))[..] {
        [] => Ok(()),
        ref missing => Err(SystemError::Privileges(missing.to_owned())),
    }
}

/// Capabilities that the kernel asks for, by number: to load programs, to have
/// them compare pointers into packets, and to attach them.
const NEEDED: [(u32, &str); 3] = [(39, "BPF"), (38, "PERFMON"), (12, "NET_ADMIN")];
/// Stands for all of them wherever bpf(2) asks.
const CAP_SYS_ADMIN: u32 = 21;

fn missing_capabilities(set: u64) -> Vec<&'static str> {
    let has = |number: u32| set >> number & 1 == 1;
    let missing = NEEDED
        .into_iter()
        .filter(|(number, _)| !has(*number) && !has(CAP_SYS_ADMIN));
    missing.map(|(_, name)| name).collect()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::the_daemon_set("000000c000001000", &[])]
    #[case::sys_admin("0000000000200000", &[])]
    #[case::no_perfmon("0000008000001000", &["PERFMON"])]
    #[case::no_net_admin("000000c000000000", &["NET_ADMIN"])]
    #[case::nobody("0000000000000000", &["BPF", "PERFMON", "NET_ADMIN"])]
    fn names_the_capabilities_that_are_missing(#[case] set: &str, #[case] missing: &[&str]) {
        let status = format!("CapPrm:\t0000000000000000\nCapEff:\t{set}\n");
        let set = effective_capabilities(&status).expect("a line");
        assert_eq!(missing_capabilities(set), missing);
        assert_eq!(effective_capabilities("no such line"), None);
    }
}
