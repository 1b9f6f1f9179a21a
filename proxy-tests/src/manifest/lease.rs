//! A file that takes long to open.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::{Context, Result, ensure};

/// Linux's `F_SETSIG`.
const F_SETSIG: libc::c_int = 10;

/// A write lease on a file: whoever opens the file waits until the lease is
/// dropped, or for the kernel's `lease-break-time` (45 s).
#[derive(Debug)]
pub struct Lease {
    file: File,
}

impl Lease {
    /// Takes a lease on a file that nobody has open.
    pub fn take(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .with_context(|| path.display().to_string())?;
        // The signal that says that somebody waits must not end this process.
        fcntl(&file, F_SETSIG, libc::SIGURG).context("choose the lease's signal")?;
        fcntl(&file, libc::F_SETLEASE, libc::F_WRLCK).context("take a lease")?;
        Ok(Self { file })
    }

    /// Fails unless somebody waits for the file.
    pub fn expect_waiter(&self) -> Result<()> {
        let lease = fcntl(&self.file, libc::F_GETLEASE, 0)?;
        ensure!(lease != libc::F_WRLCK, "nobody opens the file");
        Ok(())
    }
}

fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: an open descriptor and commands that take a number.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
