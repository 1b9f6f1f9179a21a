//! The running kernel.

use std::fs;

use crate::sys::SystemError;

/// Oldest kernel whose helpers the programs use: `bpf_for_each_map_elem` (5.13),
/// and the verifier's bounds tracking that came with 5.15.
pub const MINIMUM_KERNEL: (u32, u32) = (5, 15);

/// First series of kernels that, built as `PREEMPT_RT`, may let a more urgent packet
/// in while a program runs on a CPU (6.18, and 6.12 from 6.12.57 on). Before, disabled
/// bottom halves held it off there too.
const PREEMPTS_PROGRAMS_SINCE: (u32, u32) = (6, 12);

/// Checks that the kernel is new enough, and lets no packet in while a program runs.
pub fn require_kernel() -> Result<(), SystemError> {
    let version = version();
    if version < MINIMUM_KERNEL {
        return Err(SystemError::Kernel(version));
    }
    if preempts_programs(version, is_real_time()) {
        return Err(SystemError::RealTime(version));
    }
    Ok(())
}

/// Returns whether packets may preempt each other on a CPU. The slow path keeps what it
/// works on in memory of the CPU's.
pub fn preempts_programs(version: (u32, u32), is_real_time: bool) -> bool {
    is_real_time && version >= PREEMPTS_PROGRAMS_SINCE
}

/// Returns whether the kernel was built as `PREEMPT_RT`.
pub fn is_real_time() -> bool {
    fs::read_to_string("/sys/kernel/realtime").is_ok_and(|value| value.trim() == "1")
}

/// Major and minor version of the running kernel; zeros if unreadable.
pub fn version() -> (u32, u32) {
    let Ok(name) = nix::sys::utsname::uname() else {
        return (0, 0);
    };
    parse_version(&name.release().to_string_lossy())
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::ordinary((6, 18), false, false)]
    #[case::serialized((6, 6), true, false)]
    #[case::preemptible((6, 12), true, true)]
    fn real_time_kernels_may_preempt_programs(
        #[case] version: (u32, u32),
        #[case] is_real_time: bool,
        #[case] expected: bool,
    ) {
        assert_eq!(preempts_programs(version, is_real_time), expected);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("6.18.44-fc"), (6, 18));
        assert_eq!(parse_version("5.10.0-33-amd64"), (5, 10));
        assert_eq!(parse_version("odd"), (0, 0));
        assert!(parse_version("6.16") > parse_version("6.9.1"));
    }
}
