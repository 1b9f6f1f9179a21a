//! The file with the last known state.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Duration, Instant},
};
use tracing::{info, warn};

use super::snapshot::{Remembered, View, boot};
use crate::notice::Notice;

const NAME: &str = "state";
const DRAFT: &str = "state.new";
/// Time between two writings, the least there is.
const INTERVAL: Duration = Duration::from_secs(30);
/// Bytes of the largest file: about a million endpoints.
const LARGEST: u64 = 128 << 20;

/// Keeps the last known state in a folder.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    node_name: String,
    boot: String,
    /// Something has changed since the last writing began.
    changed: bool,
    not_before: Instant,
    writing: Option<JoinHandle<io::Result<()>>>,
    trouble: Notice<String>,
}

impl Store {
    pub fn new(folder: &Path, node_name: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            node_name: node_name.to_owned(),
            boot: boot(),
            changed: false,
            not_before: Instant::now(),
            writing: None,
            trouble: Notice::default(),
        }
    }

    /// The state that was known last, if there is one that can be used.
    pub(crate) fn load(&self) -> Option<Remembered> {
        let path = self.folder.join(NAME);
        let file = match read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(file = %path.display(), "the last known state cannot be read, going on without: {error}");
                return None;
            }
        };
        match Remembered::decode(&file, &self.node_name, &self.boot) {
            Ok(state) => Some(state),
            Err(reason) => {
                info!(file = %path.display(), "the last known state is not used: {reason}");
                None
            }
        }
    }

    /// The state has changed.
    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    /// The time at which the state is to be written, if it is.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.changed.then_some(self.not_before)
    }

    /// Begins to write the state. What goes wrong is logged, and tried again later.
    pub(crate) fn write<'a>(&'a mut self, describe: impl FnOnce(View<'a>) -> View<'a>) {
        self.not_before = Instant::now() + INTERVAL;
        if self
            .writing
            .as_ref()
            .is_some_and(|writing| !writing.is_finished())
        {
            return;
        }
        let view = describe(View::new(&self.boot, &self.node_name));
        let file = view.encode().map_err(io::Error::other);
        drop(view);
        self.changed = false;
        let folder = self.folder.clone();
        self.writing = Some(spawn_blocking(move || replace(&folder, &file?)));
    }

    /// Waits for the end of a writing, if one is going on. Without one it never returns.
    pub(crate) async fn written(&mut self) {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let result = writing.await;
        self.writing = None;
        match result.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => {
                if self.trouble.clear() {
                    info!(folder = %self.folder.display(), "the last known state is kept again");
                }
            }
            Err(error) => {
                self.changed = true;
                if self.trouble.is_news(error.to_string()) {
                    warn!(folder = %self.folder.display(), "cannot keep the last known state, it will not be there after a reboot: {error} (--state-dir)");
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut file)?;
    check_size(&file)?;
    Ok(file)
}

fn check_size(file: &[u8]) -> io::Result<()> {
    if file.len() as u64 > LARGEST {
        return Err(io::Error::other(format!(
            "it has more than {LARGEST} bytes"
        )));
    }
    Ok(())
}

/// Puts a whole new file in the place of the old one, on disk before it has its name.
fn replace(folder: &Path, file: &[u8]) -> io::Result<()> {
    check_size(file)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let draft = folder.join(DRAFT);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    written.write_all(file)?;
    written.sync_all()?;
    fs::rename(&draft, folder.join(NAME))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::last_state::snapshot::tests::service;

    fn save(store: &Store, names: &[&str]) {
        let services: Vec<_> = names.iter().map(|name| service(name, 1)).collect();
        assert!(!store.boot.is_empty(), "this kernel has boot ids");
        let view = View::new(&store.boot, &store.node_name);
        let file = view.with_services(services.iter(), [].into_iter()).encode();
        replace(&store.folder, &file.expect("encoded")).expect("written");
    }

    fn names(store: &Store) -> Option<Vec<String>> {
        let state = store.load()?;
        Some(
            state
                .services
                .iter()
                .map(|s| s.key.name().to_owned())
                .collect(),
        )
    }

    #[test]
    fn the_last_state_is_read_back_and_no_one_elses_business() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("lib/tandem");
        let store = Store::new(&folder, "node-0");
        assert_eq!(names(&store), None, "there is none yet");
        save(&store, &["a"]);
        save(&store, &["a", "b"]);
        assert_eq!(names(&store), Some(vec!["a".to_owned(), "b".to_owned()]));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
        assert!(!folder.join(DRAFT).exists());
        assert_eq!(names(&Store::new(&folder, "node-1")), None);
    }

    /// A node that lost its power while the file was written.
    #[test]
    fn half_a_file_leaves_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(folder.path(), "node-0");
        save(&store, &["a"]);
        fs::write(folder.path().join(DRAFT), "half").expect("written");
        assert_eq!(names(&store), Some(vec!["a".to_owned()]));
        save(&store, &["b"]);
        assert_eq!(names(&store), Some(vec!["b".to_owned()]));
        let path = folder.path().join(NAME);
        let whole = fs::read(&path).expect("there");
        fs::write(&path, &whole[..whole.len() / 2]).expect("written");
        assert_eq!(names(&store), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_written_every_half_minute_at_most() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::new(folder.path(), "node-0");
        assert_eq!(store.due(), None);
        store.changed();
        assert_eq!(store.due(), Some(Instant::now()));
        store.write(|view| view);
        store.written().await;
        assert_eq!(store.due(), None);
        store.changed();
        assert!(store.due() >= Some(Instant::now() + INTERVAL / 2));
        assert_eq!(names(&store), Some(Vec::new()));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_tried_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a file");
        fs::write(&file, "").expect("written");
        let mut store = Store::new(&file, "node-0");
        store.changed();
        store.write(|view| view);
        store.written().await;
        assert!(store.due().is_some());
    }
}
