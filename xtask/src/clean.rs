//! `clean`: build output, and what an aborted test or demo left on the
//! machine: whatever bears the number of a process that is no more, in a name
//! like `tandem-1f3a-0-node-1`. No agent in service makes such names.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    cache::{self, Cache},
    exec,
    setup::mount_point,
    workspace,
};

const PREFIX: &str = "tandem-";
/// The folder of the tests' temporary data, a file system in memory.
const MEMORY: &str = "/dev/shm";

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
    let search = Search::default();
    let namespaces = search.within(Path::new("/run/netns"));
    // Processes first: they hold on to all the rest.
    for namespace in &namespaces {
        kill_within(namespace)?;
    }
    if let Some(root) = mount_point(&mounts, "cgroup2") {
        for group in search.below(Path::new(root)) {
            remove_cgroup(&group)?;
            said(&group);
        }
    }
    for namespace in &namespaces {
        exec::output(
            Command::new("ip")
                .args(["netns", "delete"])
                .arg(name(namespace)),
        )?;
        said(namespace);
    }
    let pins = mount_point(&mounts, "bpf").map(PathBuf::from);
    let folders = pins.into_iter().chain([env::temp_dir(), MEMORY.into()]);
    for folder in folders {
        for left in search.within(&folder) {
            remove(&left)?;
        }
    }
    for process in search.running.borrow().iter() {
        eprintln!("xtask: process {process} still runs: what it made is left alone");
    }
    Ok(())
}

/// Looks for what processes that are gone have left.
#[derive(Default)]
struct Search {
    /// Those that are not gone.
    running: RefCell<BTreeSet<u32>>,
}

impl Search {
    /// Returns the leftovers in a folder.
    fn within(&self, folder: &Path) -> Vec<PathBuf> {
        let mut found = entries(folder);
        found.retain(|path| self.is_left(path));
        found
    }

    /// Returns the leftovers in a folder and in folders below, without what leftovers
    /// contain. A run's control groups are below the one that it was started in.
    fn below(&self, folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for path in entries(folder) {
            if self.is_left(&path) {
                found.push(path);
            } else if path.is_dir() && !path.is_symlink() {
                found.extend(self.below(&path));
            }
        }
        found
    }

    fn is_left(&self, path: &Path) -> bool {
        let Some(process) = path.file_name().and_then(|name| owner(name.to_str()?)) else {
            return false;
        };
        if Path::new("/proc").join(process.to_string()).exists() {
            self.running.borrow_mut().insert(process);
            return false;
        }
        true
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.sort();
    found
}

/// The process that made something of this name.
fn owner(name: &str) -> Option<u32> {
    let (process, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    u32::from_str_radix(process, 16).ok()
}

fn name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// Ends all processes of a network namespace.
pub(crate) fn kill_within(namespace: &Path) -> Result<()> {
    let mut list = Command::new("ip");
    list.args(["netns", "pids"]).arg(name(namespace));
    for process in exec::output(&mut list)?.lines() {
        kill(process);
    }
    Ok(())
}

/// Ends a process, or that of a thread, if it still runs.
fn kill(number: &str) {
    let _ = exec::output(Command::new("kill").args(["-KILL", number]));
}

/// Ends the processes of a control group, then removes it with those below.
pub(crate) fn remove_cgroup(group: &Path) -> Result<()> {
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
    threads.lines().for_each(kill);
    Ok(())
}

/// The files of a control group cannot be removed, so it goes folder by folder.
pub(crate) fn remove_cgroup_tree(group: &Path) -> Result<()> {
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
    use rstest::rstest;

    use super::*;

    /// Above the largest that Linux gives.
    const GONE: &str = "tandem-7fffffff-0-node-1";

    #[rstest]
    #[case::of_a_lab("tandem-1f3a-0-node-1", Some(0x1f3a))]
    #[case::in_a_folder_of_many("tandem-1f3a-0-x7bQ2a", Some(0x1f3a))]
    #[case::an_agent_in_service("tandem", None)]
    #[case::no_number("tandem-proxy-1", None)]
    #[case::an_image("tandem-0.1.0.oci.tar", None)]
    #[case::not_ours("other-tandem-1-0", None)]
    fn names_tell_who_made_what_bears_them(#[case] name: &str, #[case] expected: Option<u32>) {
        assert_eq!(owner(name), expected);
    }

    #[test]
    fn what_a_running_process_made_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let own = format!("tandem-{:x}-0-node-1", std::process::id());
        for name in [GONE, &own, "other"] {
            cache::create(&folder.path().join(name)).unwrap();
        }
        let search = Search::default();
        assert_eq!(search.within(folder.path()), [folder.path().join(GONE)]);
        assert_eq!(search.running.take(), [std::process::id()].into());
    }

    #[test]
    fn control_groups_are_found_wherever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("user.slice/session-1.scope").join(GONE);
        let deeper = below.join(GONE);
        cache::create(&deeper).unwrap();
        assert_eq!(Search::default().below(folder.path()), [below]);
    }

    #[test]
    fn a_folder_that_is_not_there_holds_nothing() {
        assert!(
            Search::default()
                .within(Path::new("/nonexistent"))
                .is_empty()
        );
    }
}
