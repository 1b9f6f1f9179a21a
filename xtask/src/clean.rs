//! `clean`: build output, and what an aborted test or demo left on the
//! machine. Only names that begin with `tandem-` are touched: they are made
//! by tests and demo, never by an agent in service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::setup::mount_point;
use crate::{exec, workspace};

const PREFIX: &str = "tandem-";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also the cache: downloaded and built tools
    #[arg(long)]
    cache: bool,
    /// Only what an aborted run left on the machine
    #[arg(long, conflicts_with = "cache")]
    leftovers: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args { cache, leftovers } = args;
    if exec::is_root() {
        remove_leftovers()?;
    } else {
        eprintln!("xtask: not root: network namespaces, pins and cgroups are left alone");
    }
    if leftovers {
        return Ok(());
    }
    remove(&workspace::target())?;
    if cache {
        remove(Cache::locate()?.root())?;
    }
    Ok(())
}

fn remove_leftovers() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    // Processes first: they hold on to all the rest.
    if let Some(root) = mount_point(&mounts, "cgroup2") {
        for group in ours(Path::new(root)) {
            remove_cgroup(&group)?;
            said(&group);
        }
    }
    for namespace in ours(Path::new("/run/netns")) {
        let name = namespace.file_name().unwrap_or_default();
        exec::output(Command::new("ip").args(["netns", "delete"]).arg(name))?;
        said(&namespace);
    }
    if let Some(root) = mount_point(&mounts, "bpf") {
        for pins in ours(Path::new(root)) {
            remove(&pins)?;
        }
    }
    Ok(())
}

/// What is in a folder and bears our prefix.
fn ours(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(PREFIX))
        })
        .collect();
    found.sort();
    found
}

/// Ends the processes of a control group, then removes it with those below.
fn remove_cgroup(group: &Path) -> Result<()> {
    let kill = group.join("cgroup.kill");
    // A group whose members are threads cannot be killed as a whole.
    if fs::write(&kill, "1").is_err() {
        kill_threads(group)?;
    }
    remove_cgroup_tree(group)
}

/// Ends the processes that the threads in a control group belong to.
fn kill_threads(group: &Path) -> Result<()> {
    let path = group.join("cgroup.threads");
    let threads = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for thread in threads.lines() {
        // One that ended meanwhile is as good.
        let _ = exec::output(Command::new("kill").args(["-KILL", thread]));
    }
    Ok(())
}

/// The files of a control group cannot be removed, so it goes folder by folder.
fn remove_cgroup_tree(group: &Path) -> Result<()> {
    let entries = fs::read_dir(group).with_context(|| format!("read {}", group.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("read {}", group.display()))?
            .path();
        if path.is_dir() {
            remove_cgroup_tree(&path)?;
        }
    }
    retry(|| fs::remove_dir(group)).with_context(|| format!("remove {}", group.display()))
}

/// Ended processes leave their control group a moment later.
fn retry(mut action: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    for _ in 0..50 {
        match action() {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            result => return result,
        }
    }
    action()
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        cache::remove(folder)?;
        said(folder);
    }
    Ok(())
}

fn said(path: &Path) {
    eprintln!("xtask: removed {}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_our_prefix_are_ours() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tandem-node-1", "tandem", "tandemic", "other-tandem-1"] {
            cache::create(&folder.path().join(name)).unwrap();
        }
        assert_eq!(ours(folder.path()), [folder.path().join("tandem-node-1")]);
    }

    #[test]
    fn a_folder_that_is_not_there_holds_nothing_of_ours() {
        assert!(ours(Path::new("/nonexistent")).is_empty());
    }
}
