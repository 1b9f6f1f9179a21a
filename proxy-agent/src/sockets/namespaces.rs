//! Finds network namespaces by their cookies, and goes there.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::keeper::netns_cookie;

/// Where container runtimes and `ip netns` give namespaces a name.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/docker/netns"];

/// The namespaces with these cookies, as far as they can be found: by their
/// names, and by the processes in them.
pub fn find(cookies: &BTreeSet<u64>) -> HashMap<u64, File> {
    let mut found = HashMap::new();
    let mut seen = BTreeSet::new();
    let named = NAMED.iter().flat_map(|folder| entries(Path::new(folder)));
    let processes = entries(Path::new("/proc"))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(|process| process.join("ns/net"));
    for path in named.chain(processes) {
        if found.len() == cookies.len() {
            break;
        }
        // What goes away meanwhile needs nothing done.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if let Ok(cookie) = within(&file, netns_cookie)
            && cookies.contains(&cookie)
        {
            found.insert(cookie, file);
        }
    }
    found
}

/// Does something inside a network namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let visit = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        visit
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the visit ended early")))
    })
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}
