//! The BPF file system, where each node's agent pins its maps and links.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
};

/// The usual mount point.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// A directory for pins, emptied and removed on drop: its programs are then
/// detached and its maps freed.
#[derive(Debug)]
pub struct PinDirectory {
    path: PathBuf,
}

impl PinDirectory {
    /// Reserves the directory `name`; the agent itself creates it.
    pub fn reserve(name: &str) -> Result<Self> {
        ensure_mounted()?;
        Ok(Self {
            path: Path::new(MOUNT_POINT).join(name),
        })
    }

    /// The directory, as `--bpf-root` wants it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns every file below, relative to the directory; empty if it does not exist.
    pub fn pins(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut pending = vec![self.path.clone()];
        while let Some(directory) = pending.pop() {
            if !directory.exists() {
                continue;
            }
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(&self.path)?.to_owned());
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        if self.path.exists()
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// Mounts bpffs where it is missing. The lock keeps test programs that start
/// together from mounting it one over the other.
fn ensure_mounted() -> Result<()> {
    let directory = File::open("/sys/fs").context("/sys/fs")?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("lock /sys/fs")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let is_mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(MOUNT_POINT) && fields.next() == Some("bpf")
    });
    if !is_mounted {
        mount(
            Some("bpf"),
            MOUNT_POINT,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount bpffs at {MOUNT_POINT}"))?;
    }
    Ok(())
}
