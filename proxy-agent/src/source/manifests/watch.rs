//! Tells when something below a directory changes.

use std::{io, os::fd::AsFd, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;

use super::ManifestError;

/// An inotify instance that watches folders, and files that links lead to.
pub struct Watch {
    inotify: Inotify,
    /// The same file, for waiting. It reads like a pipe.
    events: pipe::Receiver,
}

impl Watch {
    /// Watches nothing yet. The path is for the error only.
    pub fn new(root: &Path) -> Result<Self, ManifestError> {
        open().map_err(|source| ManifestError::Watch {
            path: root.to_owned(),
            source,
        })
    }

    /// Watches the entries of one folder; no harm if it does already.
    pub fn add(&self, folder: &Path) -> Result<(), ManifestError> {
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        self.add_events(folder, events)
    }

    /// Watches the file that a path leads to, which may be anywhere.
    pub fn add_file(&self, path: &Path) -> Result<(), ManifestError> {
        self.add_events(path, AddWatchFlags::empty())
    }

    fn add_events(&self, path: &Path, events: AddWatchFlags) -> Result<(), ManifestError> {
        let itself = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let added = self.inotify.add_watch(path, events | itself);
        added.map(drop).map_err(|errno| ManifestError::Watch {
            path: path.to_owned(),
            source: errno.into(),
        })
    }

    /// Waits until something has changed since this was last called. What it
    /// was does not matter: all files are compared with what they were.
    pub async fn changed(&self) -> io::Result<()> {
        // An event needs up to NAME_MAX and a bit; many fit.
        let mut events = [0; 4096];
        loop {
            self.events.readable().await?;
            match self.events.try_read(&mut events) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn open() -> io::Result<Watch> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let events = inotify.as_fd().try_clone_to_owned()?;
    Ok(Watch {
        inotify,
        events: pipe::Receiver::from_owned_fd_unchecked(events)?,
    })
}
