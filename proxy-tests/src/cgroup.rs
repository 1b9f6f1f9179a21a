//! Control groups: what runs on a node runs in the node's own cgroup, where
//! the agent of that node attaches its socket programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::unistd::gettid;

use crate::eventually;

/// A cgroup of the unified hierarchy, removed on drop.
///
/// It is *threaded*: a single thread of the test may enter it, so a server or
/// client of a pod need not be a process of its own. It lies below the
/// test's own cgroup, because threads may not leave their domain.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Creates the cgroup `name` below the one this process is in.
    pub fn create(name: &str) -> Result<Self> {
        Self::create_at(own_cgroup()?.join(name))
    }

    /// Creates a cgroup within this one.
    pub fn create_within(&self, name: &str) -> Result<Self> {
        Self::create_at(self.path.join(name))
    }

    fn create_at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        let cgroup = Self { path };
        write(&cgroup.path.join("cgroup.type"), "threaded")?;
        Ok(cgroup)
    }

    /// The directory, as `--cgroup-root` wants it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread, and no other, into this cgroup. Sockets it
    /// makes and processes it starts from now on belong here.
    pub fn enter(&self) -> Result<()> {
        write(&self.path.join("cgroup.threads"), &gettid().to_string())
    }

    /// Sends the threads still inside back to the parent, so that the
    /// directory can be removed while they come to their end.
    fn evict(&self) -> Result<()> {
        let Some(parent) = self.path.parent() else {
            return Ok(());
        };
        for thread in fs::read_to_string(self.path.join("cgroup.threads"))?.lines() {
            // A thread that ended meanwhile needs no moving.
            let _ = fs::write(parent.join("cgroup.threads"), thread);
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = eventually("cgroup is empty", std::time::Duration::from_secs(5), || {
            self.evict()?;
            fs::remove_dir(&self.path).map_err(Into::into)
        });
        if let Err(error) = removed {
            eprintln!("{} is left behind: {error:#}", self.path.display());
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {text} to {}", path.display()))
}

/// The directory of this process's own cgroup in the unified hierarchy.
fn own_cgroup() -> Result<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    let own = membership
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("this process is in no cgroup of the unified hierarchy")?;
    Ok(mount_point()?.join(own))
}

/// Returns the mount point of cgroup2; beside version 1 it is not /sys/fs/cgroup.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .context("cgroup2 is mounted nowhere")
}
