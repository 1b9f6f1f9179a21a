//! Ownership of a bpf root: one agent at a time, the owner, writes below it.
//!
//! ```text
//! <bpf root>            locked (flock) by the owner
//! <bpf root>/owner      a symbolic link whose text names the owner
//! <bpf root>/successor  locked by an agent that waits to become the owner
//! ```
//!
//! The kernel keeps the locks with the folders themselves, so they hold between
//! containers, process namespaces and layout versions, and end with the process
//! that has them, however it ends. The newer agent takes over: it locks
//! `successor`, upon which the owner stops writing and gives its lock up. The
//! older one stands by until the newer one ends.

use std::{
    fmt,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// Time between two attempts of a successor to get a lock.
const ATTEMPT: Duration = Duration::from_millis(20);
/// Time that a successor waits before it warns of an owner that does not give way.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks of an owner for a successor.
const LOOK: Duration = Duration::from_millis(200);
/// Time between two looks of an agent that stands by.
const STANDBY: Duration = Duration::from_secs(1);

/// Names of the link, also while it is made, and of the folder.
const OWNER: &str = "owner";
const OWNER_DRAFT: &str = "owner-draft";
const SUCCESSOR: &str = "successor";

/// A lock below a bpf root cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct OwnershipError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The name of an owner of a bpf root, for people: which process it is, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name of this process: a command of the agent, on a node.
    pub fn of_this_process(command: &str, node: &str) -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self(format!(
            "`proxy-agent {command}` {} on {node}, process {} of its pid namespace, started at Unix time {:.3}",
            env!("CARGO_PKG_VERSION"),
            process::id(),
            since.as_secs_f64(),
        ))
    }

    /// The name of the last owner of a bpf root; `None` if there was none since the last
    /// `cleanup`.
    fn of_owner(root: &Path) -> Option<Self> {
        let text = fs::read_link(root.join(OWNER)).ok()?;
        Some(Self(text.to_string_lossy().into_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the name of the current owner of a bpf root, if there is one.
pub fn owner(root: &Path) -> Option<Name> {
    let folder = File::open(root).ok()?;
    match try_lock(folder, FlockArg::LockSharedNonblock) {
        Ok(None) => Name::of_owner(root).or_else(|| Some(Name("an agent".to_owned()))),
        Ok(Some(_)) | Err(_) => None,
    }
}

/// A process that may become the owner.
#[derive(Clone, Debug)]
pub struct Candidate {
    root: PathBuf,
    name: Name,
}

/// The owner, until it is dropped.
#[derive(Debug)]
pub struct Ownership {
    root: PathBuf,
    lock: Flock<File>,
}

/// The reason why the ownership of a bpf root ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Another agent wants it.
    Wanted,
    /// The folder is gone, or another one.
    Removed,
}

impl Candidate {
    /// A candidate for a folder in a bpf file system, which need not be there.
    pub fn new(root: &Path, name: Name) -> Self {
        Self {
            root: root.to_owned(),
            name,
        }
    }

    /// Becomes the owner as soon as the present one has stopped writing.
    pub async fn take_over(&self) -> Result<Ownership, OwnershipError> {
        let successor = self.root.join(SUCCESSOR);
        let mut waiting = Waiting::new(&self.root);
        let turn = loop {
            make(&self.root)?;
            make(&successor)?;
            // Others that wait come first; each of them is owner for a moment.
            if let Some(turn) = lock(&successor)? {
                break turn;
            }
            waiting.pause().await;
        };
        loop {
            make(&self.root)?;
            if let Some(ownership) = self.try_to_own()? {
                drop(turn);
                waiting.done();
                return Ok(ownership);
            }
            waiting.pause().await;
        }
    }

    /// Becomes the owner again once there is neither an owner nor a successor. Returns
    /// `None` if `cleanup` has removed everything meanwhile.
    pub async fn stand_by(&self) -> Result<Option<Ownership>, OwnershipError> {
        let mut told = false;
        loop {
            let owner = Name::of_owner(&self.root);
            if let Some(other) = owner.filter(|owner| *owner != self.name && !told) {
                info!(
                    "another agent took over this bpf root: {other}; this one stands by, writes nothing, and takes over again when that one ends"
                );
                told = true;
            }
            if !has_successor(&self.root)
                && let Some(lock) = lock(&self.root)?
            {
                if Name::of_owner(&self.root).is_none() {
                    return Ok(None);
                }
                return self.own(lock).map(Some);
            }
            if !self.root.exists() {
                return Ok(None);
            }
            sleep(if told { STANDBY } else { ATTEMPT }).await;
        }
    }

    /// Becomes the owner if there is none now.
    pub fn try_to_own(&self) -> Result<Option<Ownership>, OwnershipError> {
        let lock = lock(&self.root)?;
        lock.map(|lock| self.own(lock)).transpose()
    }

    fn own(&self, lock: Flock<File>) -> Result<Ownership, OwnershipError> {
        let link = self.root.join(OWNER);
        // In one step: without a link, those that stand by would think of
        // `cleanup`. Left behind if one died between the two.
        let draft = self.root.join(OWNER_DRAFT);
        let _ = fs::remove_file(&draft);
        let made = symlink(&self.name.0, &draft).and_then(|()| fs::rename(&draft, &link));
        made.map_err(|source| OwnershipError {
            action: "make link",
            path: link,
            source,
        })?;
        Ok(Ownership {
            root: self.root.clone(),
            lock,
        })
    }
}

impl Ownership {
    /// Waits until this agent must not be the owner any more. It then stops
    /// writing and drops this.
    pub async fn is_lost(&self) -> Loss {
        loop {
            if has_successor(&self.root) {
                return Loss::Wanted;
            }
            if !is_at(&self.lock, &self.root) {
                return Loss::Removed;
            }
            sleep(LOOK).await;
        }
    }

    /// Removes what says who the owner is, as the last thing below the root.
    pub fn remove(self) -> Result<(), OwnershipError> {
        let removed = [
            fs::remove_file(self.root.join(OWNER_DRAFT)),
            fs::remove_file(self.root.join(OWNER)),
            fs::remove_dir(self.root.join(SUCCESSOR)),
        ];
        for result in removed {
            match result {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OwnershipError {
                        action: "remove what tells of the owner of",
                        path: self.root,
                        source,
                    });
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.root) {
            // Others' folders are in it.
            Err(source) if source.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(OwnershipError {
                    action: "remove",
                    path: self.root.clone(),
                    source,
                })
            }
            _ => Ok(()),
        }
    }
}

/// A successor's wait for the locks of others.
struct Waiting<'a> {
    root: &'a Path,
    since: Instant,
    owner: Option<Name>,
    told: bool,
}

impl<'a> Waiting<'a> {
    fn new(root: &'a Path) -> Self {
        Self {
            root,
            since: Instant::now(),
            owner: None,
            told: false,
        }
    }

    async fn pause(&mut self) {
        self.owner = owner(self.root).or(self.owner.take());
        if self.since.elapsed() > PATIENCE
            && !self.told
            && let Some(owner) = &self.owner
        {
            warn!(
                "this bpf root has an owner that does not give it up, still waiting: {owner}; if it hangs, end it"
            );
            self.told = true;
        }
        sleep(ATTEMPT).await;
    }

    fn done(self) {
        if let Some(owner) = self.owner {
            info!("took this bpf root over from {owner}");
        }
    }
}

/// Returns whether somebody waits to become the owner.
fn has_successor(root: &Path) -> bool {
    File::open(root.join(SUCCESSOR))
        .is_ok_and(|folder| matches!(try_lock(folder, FlockArg::LockSharedNonblock), Ok(None)))
}

/// Makes a folder that only root may open, and so lock.
fn make(path: &Path) -> Result<(), OwnershipError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| OwnershipError {
        action: "create folder (is a bpf file system mounted there?)",
        path: path.to_owned(),
        source,
    })
}

/// Locks a folder that is there, unless somebody else has.
fn lock(path: &Path) -> Result<Option<Flock<File>>, OwnershipError> {
    let failed = |source| OwnershipError {
        action: "lock folder",
        path: path.to_owned(),
        source,
    };
    let folder = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        folder => folder.map_err(failed)?,
    };
    let locked = try_lock(folder, FlockArg::LockExclusiveNonblock).map_err(failed)?;
    // It may have been removed, and made anew, before it was locked.
    Ok(locked.filter(|lock| is_at(lock, path)))
}

/// Returns whether a folder is still the one at a path.
fn is_at(folder: &File, path: &Path) -> bool {
    let (Ok(folder), Ok(there)) = (folder.metadata(), fs::metadata(path)) else {
        return false;
    };
    (folder.dev(), folder.ino()) == (there.dev(), there.ino())
}

/// Locks a folder. Returns `None` if somebody else has a lock that excludes it.
fn try_lock(folder: File, kind: FlockArg) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(folder, kind) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(root: &Path, name: &str) -> Candidate {
        Candidate::new(root, Name(name.to_owned()))
    }

    fn is_taken(root: &Path) -> Option<String> {
        owner(root).map(|owner| owner.to_string())
    }

    #[tokio::test]
    async fn the_newer_one_takes_over_and_the_older_one_takes_it_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        assert_eq!(owner(&root), None);
        let (older, newer) = (candidate(&root, "older"), candidate(&root, "newer"));
        let first = older.take_over().await.expect("free");
        assert_eq!(is_taken(&root).as_deref(), Some("older"));
        assert!(!has_successor(&root));

        let handed_over = async {
            assert_eq!(first.is_lost().await, Loss::Wanted);
            assert_eq!(is_taken(&root).as_deref(), Some("older"), "in order");
            drop(first);
        };
        let (second, ()) = tokio::join!(newer.take_over(), handed_over);
        let second = second.expect("given up");
        assert_eq!(is_taken(&root).as_deref(), Some("newer"));

        let ended = async {
            sleep(ATTEMPT * 5).await;
            drop(second);
        };
        let (third, ()) = tokio::join!(older.stand_by(), ended);
        assert!(third.expect("free again").is_some());
    }

    #[tokio::test]
    async fn the_last_of_many_is_the_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let reign = async |name: &'static str| {
            let owner = candidate(root, name).take_over().await.expect("given up");
            owner.is_lost().await;
            name
        };
        let mut given_up = Vec::new();
        let mut third = Box::pin(reign("third"));
        let mut second = Box::pin(reign("second"));
        let mut first = Box::pin(reign("first"));
        for _ in 0..2 {
            tokio::select! {
                name = &mut first, if !given_up.contains(&"first") => given_up.push(name),
                name = &mut second, if !given_up.contains(&"second") => given_up.push(name),
                name = &mut third, if !given_up.contains(&"third") => given_up.push(name),
            }
        }
        let last = async {
            tokio::select! {
                name = &mut first, if !given_up.contains(&"first") => name,
                name = &mut second, if !given_up.contains(&"second") => name,
                name = &mut third, if !given_up.contains(&"third") => name,
            }
        };
        let last = tokio::time::timeout(LOOK * 5, last).await;
        assert!(last.is_err(), "{last:?} gives up, after {given_up:?}");
        assert!(is_taken(root).is_some(), "one is left");
    }

    #[tokio::test]
    async fn one_that_stands_by_ends_after_a_cleanup() {
        for others in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let root = folder.path().join("root");
            let older = candidate(&root, "older");
            drop(older.take_over().await.expect("free"));
            if others {
                fs::create_dir(root.join("of-somebody-else")).expect("a folder");
            }
            let cleanup = candidate(&root, "cleanup").take_over().await;
            let standing_by = async { older.stand_by().await.expect("readable") };
            let removed = async {
                sleep(ATTEMPT * 5).await;
                cleanup.expect("free").remove().expect("removed");
            };
            let (ownership, ()) = tokio::join!(standing_by, removed);
            assert!(ownership.is_none());
            assert_eq!(root.exists(), others);
        }
    }

    #[tokio::test]
    async fn a_root_that_was_made_anew_is_not_taken_for_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        let old = candidate(&root, "old").take_over().await.expect("free");
        fs::rename(&root, folder.path().join("elsewhere")).expect("renamed");
        let new = candidate(&root, "new").take_over().await.expect("free");
        assert_eq!(old.is_lost().await, Loss::Removed);
        assert!(is_at(&new.lock, &root));
    }
}
