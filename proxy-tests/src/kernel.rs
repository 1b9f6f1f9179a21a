//! Features of the kernel under test: the suite also runs under older ones
//! (`cargo xtask test --kernel`).

use std::{io::Write, thread};

use anyhow::Result;
use proxy_agent::{dataplane::attach::TCX_SINCE, sys::kernel::version as kernel_version};

use crate::host::Host;

/// Something that tests use and not every kernel has.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    name: &'static str,
    since: (u32, u32),
}

/// Links of programs to a device's hooks.
pub const TCX: Feature = Feature {
    name: "tcx",
    since: TCX_SINCE,
};

impl Feature {
    /// Returns whether this kernel has it, for tests that hold without it, too.
    pub fn exists(self) -> bool {
        kernel_version() >= self.since
    }

    /// Returns whether this kernel has it. If not, the test is to return, and a line
    /// says so: the test runner knows only tests that pass and tests that fail.
    pub fn is_here(self) -> bool {
        if !self.exists() {
            say_skipped(&format!(
                "{} needs Linux {}, this is {}",
                self.name,
                version(self.since),
                version(kernel_version())
            ));
        }
        self.exists()
    }
}

/// Makes a device of this type on a host by lines of `ip`; returns whether this kernel has
/// such devices, and says so if not.
pub fn can_make(host: &Host, device: &str, lines: &str) -> Result<bool> {
    match host.ip(lines) {
        Err(error) if format!("{error:#}").contains("Unknown device type") => {
            say_skipped(&format!("this kernel has no devices of type {device}"));
            Ok(false)
        }
        result => result.map(|()| true),
    }
}

fn say_skipped(why: &str) {
    let test = thread::current();
    let line = format!("SKIPPED {}: {why}\n", test.name().unwrap_or("a test"));
    // Not by `eprintln`, which the runner keeps from the user where a test passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Returns whether the agent can attach its programs in this way, `tcx` or `clsact`,
/// under this kernel; says so if it cannot.
pub fn can_attach(way: &str) -> bool {
    way != "tcx" || TCX.is_here()
}

fn version((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}
