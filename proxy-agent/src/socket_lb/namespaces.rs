//! The node's network namespaces: finds them, and goes there.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Folders in which container runtimes and `ip netns` name namespaces.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/docker/netns"];
/// The calling process's own.
const OWN: &str = "/proc/self/ns/net";

/// Does something in each network namespace but this process's own, as far as
/// they can be found: by their names, and by the processes in them. Ends at the
/// first one that may not be entered.
pub fn visit_others(mut visit: impl FnMut() + Send) -> io::Result<()> {
    let mut seen = BTreeSet::from([identity(Path::new(OWN))?]);
    thread::scope(|scope| {
        // A thread of its own: it never comes back.
        let visits = scope.spawn(|| {
            for path in places() {
                // What goes away meanwhile needs nothing done.
                let Ok(identity) = identity(&path) else {
                    continue;
                };
                if !seen.insert(identity) {
                    continue;
                }
                let Ok(namespace) = File::open(&path) else {
                    continue;
                };
                match setns(namespace, CloneFlags::CLONE_NEWNET) {
                    Ok(()) => visit(),
                    Err(nix::Error::EPERM) => return Err(nix::Error::EPERM.into()),
                    // A file of another kind among the names.
                    Err(_) => {}
                }
            }
            Ok(())
        });
        visits
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the visits ended early")))
    })
}

/// Fails if this process may not enter network namespaces.
pub fn may_enter() -> io::Result<()> {
    let own = File::open(OWN)?;
    thread::scope(|scope| {
        let visit = scope.spawn(|| setns(own, CloneFlags::CLONE_NEWNET));
        match visit.join() {
            Ok(entered) => Ok(entered?),
            Err(_) => Err(io::Error::other("the visit ended early")),
        }
    })
}

/// Returns a namespace's device and inode, which identify it.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Returns the paths that may lead to a namespace.
fn places() -> impl Iterator<Item = PathBuf> {
    let named = NAMED.iter().flat_map(|folder| entries(Path::new(folder)));
    let processes = entries(Path::new("/proc"))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(|process| process.join("ns/net"));
    named.chain(processes)
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}
