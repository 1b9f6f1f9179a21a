//! Objects from a directory of manifests, without a cluster.
//!
//! Every `*.yaml`, `*.yml` and `*.json` below the directory counts, except in
//! hidden files and folders (a mounted `ConfigMap` keeps its versions in hidden
//! folders); links to files are followed, links to folders are not, but the
//! directory itself may be one. The directory is watched, and the files that
//! links lead to: changes that come together, such as files replaced by rename,
//! are read together and take effect together.
//!
//! An unreadable document is logged and harms only itself. As long as part of a
//! file cannot be read, objects that the file had before and does not show now
//! stay in force. An object in several files is the one in the file whose path
//! sorts first.

pub mod directory;
pub mod document;
mod found;
pub mod watch;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use self::{directory::Directory, watch::Watch};
use super::Batch;
use crate::{metrics::Metrics, notice::Notice};

/// Changes are read when nothing more happened for this long …
const QUIET: Duration = Duration::from_millis(50);
/// … or after this long, if something always happens.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Time between attempts to read a directory that cannot be read.
const RETRY: Duration = Duration::from_secs(1);
/// Time after which files and folders that cannot be looked at are looked at
/// again: nobody tells when they can be.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// An error reading or watching the manifests.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot read manifests in {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot watch {} for changes", path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Checks that the directory is there to be watched.
pub fn check(root: &Path) -> Result<(), ManifestError> {
    Watch::new(root)?.add(root)
}

/// Reads the directory, then follows its changes for as long as it is polled
/// and someone listens. Only the first reading may fail.
pub async fn run(
    root: &Path,
    changes: mpsc::Sender<Batch>,
    metrics: Metrics,
) -> Result<(), ManifestError> {
    let watch = Arc::new(Watch::new(root)?);
    let directory = Directory::new(root.to_owned(), metrics);
    let (mut directory, lists) = read(directory, &watch, Directory::list_all).await;
    let mut next = lists?;
    info!(directory = %root.display(), "manifests read");
    loop {
        if !next.is_empty() && changes.send(next).await.is_err() {
            return Ok(());
        }
        let settled = settle(&watch, root);
        if directory.is_complete() {
            settled.await?;
        } else if let Ok(settled) = timeout(LOOK_AGAIN, settled).await {
            settled?;
        }
        (directory, next) = read_again(directory, &watch).await;
    }
}

/// All objects of the directory as it is now, without following it.
pub fn read_once(root: &Path) -> Result<Batch, ManifestError> {
    Directory::new(root.to_owned(), Metrics::default()).list_all(None)
}

type Reading = Result<Batch, ManifestError>;

/// Reads on a thread of its own: large files take a while, in which the rest
/// of the agent has other things to do.
async fn read(
    mut directory: Directory,
    watch: &Arc<Watch>,
    list: fn(&mut Directory, Option<&Watch>) -> Reading,
) -> (Directory, Reading) {
    let watch = Arc::clone(watch);
    let reading = spawn_blocking(move || {
        let reading = list(&mut directory, Some(&watch));
        (directory, reading)
    });
    match reading.await {
        Ok(read) => read,
        // It is never cancelled; a panic is passed on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Waits for a change, and until it is over.
async fn settle(watch: &Watch, root: &Path) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Watch {
        path: root.to_owned(),
        source,
    };
    watch.changed().await.map_err(failed)?;
    let latest = Instant::now() + LONGEST_WAIT;
    let quiet = async { while timeout(QUIET, watch.changed()).await.is_ok() {} };
    // Elapsed or quiet: both mean to read now.
    let _ = timeout_at(latest, quiet).await;
    Ok(())
}

/// Reads what changed; tries until that works.
async fn read_again(mut directory: Directory, watch: &Arc<Watch>) -> (Directory, Batch) {
    let mut failure = Notice::default();
    loop {
        let error;
        (directory, error) = match read(directory, watch, Directory::list_changes).await {
            (directory, Ok(batch)) => return (directory, batch),
            (directory, Err(error)) => (directory, error),
        };
        let message = format!("{:#}", anyhow::Error::new(error));
        if failure.is_news(message.clone()) {
            warn!("{message}; the last state stays in force");
        }
        sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests;
