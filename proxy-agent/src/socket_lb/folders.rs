//! Folders in which cgroups appear, and news of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd as _,
    path::PathBuf,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::net::unix::pipe;

/// An inotify instance and the folders that it watches.
pub struct Folders {
    watch: Inotify,
    /// The same file, for waiting. It reads like a pipe.
    events: pipe::Receiver,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
}

impl Folders {
    /// Watches nothing yet.
    pub fn open() -> io::Result<Self> {
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = watch.as_fd().try_clone_to_owned()?;
        Ok(Self {
            watch,
            events: pipe::Receiver::from_owned_fd_unchecked(events)?,
            watched: BTreeMap::new(),
        })
    }

    /// Returns whether there are any.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Watches these folders. Returns whether one of them is new, also in the place of
    /// one that was removed.
    pub fn follow(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let mut more = false;
        self.watched.retain(|folder, _| folders.contains(folder));
        for folder in folders {
            let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
            if let Ok(descriptor) = self.watch.add_watch(folder, events) {
                let before = self.watched.insert(folder.clone(), descriptor);
                more |= before != Some(descriptor);
            }
        }
        more
    }

    /// Waits for events. Their contents do not matter: all folders are read.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            self.events.readable().await?;
            match self.events.try_read(&mut buffer) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    /// One that is removed and made again between two looks is another one.
    #[tokio::test]
    async fn folders_that_are_made_again_are_watched() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("kubepods");
        fs::create_dir(&folder).expect("a folder");
        let wanted = BTreeSet::from([folder.clone()]);
        let mut folders = Folders::open().expect("inotify");
        assert!(folders.follow(&wanted));
        assert!(!folders.follow(&wanted), "watched already");

        fs::remove_dir(&folder).expect("remove");
        fs::create_dir(&folder).expect("a folder");
        folders.changed().await.expect("news of the first one");
        assert!(folders.follow(&wanted));
        fs::create_dir(folder.join("pod")).expect("a folder");
        let news = timeout(Duration::from_secs(10), folders.changed()).await;
        news.expect("in time").expect("news of the second one");
    }
}
