//! The files of a manifest directory, and what changed in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};

use super::{
    ManifestError,
    document::{self, Contents, Format, Manifest, ObjectId},
    found::{Found, Stamp, format},
    watch::Watch,
};
use crate::{
    metrics::Metrics,
    model::{Kind, ObjectKey},
    notice::Notices,
    source::{Batch, Change, Update},
};

/// The known state of a directory, without the objects themselves: a file is read
/// again when it matters.
pub struct Directory {
    root: PathBuf,
    /// The files, as they were when last read.
    files: BTreeMap<Arc<Path>, Stamp>,
    /// The objects, with the files that hold them, mostly one. The version of
    /// an object's first file counts.
    holders: BTreeSet<(ObjectId, Arc<Path>)>,
    /// Files and folders that could not be looked at, and why.
    refused: Notices<PathBuf, String>,
    metrics: Metrics,
}

/// The objects just read, in the order of [`Directory::holders`]. One piece of
/// memory, which leaves no holes among what is kept of the objects.
type Fresh = Vec<FreshObject>;

/// A file's version of an object.
struct FreshObject {
    id: ObjectId,
    path: Arc<Path>,
    /// Until it is taken.
    manifest: Option<Manifest>,
}

impl Directory {
    /// A directory nothing is known of yet.
    pub fn new(root: PathBuf, metrics: Metrics) -> Self {
        Self {
            root,
            files: BTreeMap::new(),
            holders: BTreeSet::new(),
            refused: Notices::default(),
            metrics,
        }
    }

    /// All objects there are, as lists of every kind. For the first reading.
    pub fn list_all(&mut self, watch: Option<&Watch>) -> Result<Batch, ManifestError> {
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        let (mut nodes, mut cidrs) = (Vec::new(), Vec::new());
        for change in self.list_changes(watch)? {
            match change {
                Change::Service(Update::Apply(service)) => services.push(service),
                Change::EndpointSlice(Update::Apply(slice)) => slices.push(slice),
                Change::Node(Update::Apply(node)) => nodes.push(node),
                Change::ServiceCidr(Update::Apply(cidr)) => cidrs.push(cidr),
                // Of a directory nothing was known of, nothing is gone.
                Change::Service(_)
                | Change::EndpointSlice(_)
                | Change::Node(_)
                | Change::ServiceCidr(_) => {}
            }
        }
        Ok(vec![
            Update::Relist(nodes).into(),
            Update::Relist(cidrs).into(),
            Update::Relist(slices).into(),
            Update::Relist(services).into(),
        ])
    }

    /// Returns the changes since the last time; folders that are found are watched
    /// from then on, if there is a watch. An error leaves the known state as it is.
    pub fn list_changes(&mut self, watch: Option<&Watch>) -> Result<Batch, ManifestError> {
        let found = Found::below(&self.root, watch)?;
        self.note_refused(&found);
        let gone = |path: &Arc<Path>, _: &mut Stamp| !found.has(path);
        let mut outdated: BTreeSet<_> = self
            .files
            .extract_if(.., gone)
            .map(|(path, _)| path)
            .collect();
        let mut fresh = Fresh::new();
        for (path, stamp) in found.files {
            if self.files.get(&path) == Some(&stamp) {
                continue;
            }
            let (objects, whole) = self.read(&path);
            // What a part of a file does not show may be in the other part.
            if whole {
                outdated.insert(Arc::clone(&path));
            }
            fresh.extend(objects.into_iter().map(|(id, manifest)| FreshObject {
                id,
                path: Arc::clone(&path),
                manifest: Some(manifest),
            }));
            self.files.insert(path, stamp);
        }
        fresh.sort_unstable_by(|one, other| one.place().cmp(&other.place()));
        let touched = self.put(&outdated, &fresh);
        self.warn_of_copies(&fresh);
        let (mut changes, mut gone) = (Batch::new(), BTreeMap::<_, Vec<_>>::new());
        for (id, before) in touched {
            if self.winner(&id).is_some() {
                changes.extend(self.change(&id, before.as_deref(), &mut fresh));
            } else if before.is_some() {
                gone.entry(id.0).or_default().push(id.1);
            }
        }
        let gone = gone.into_iter().map(|(kind, keys)| missing(kind, keys));
        Ok(gone.chain(changes).collect())
    }

    /// Returns whether all there is could be looked at when the directory was last read.
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty()
    }

    fn note_refused(&mut self, found: &Found) {
        self.refused.retain(|path| found.refused.contains_key(path));
        for (path, reason) in &found.refused {
            if self.refused.is_news(path.clone(), reason.clone()) {
                warn!(file = %path.display(), "cannot look at it, what was there stays in force: {reason}");
                self.metrics.watch_error(&"Manifest");
            }
        }
    }

    /// Forgets what outdated versions of files held, and notes what the fresh
    /// ones do. Returns the objects of both, with the files whose version of
    /// them counted before.
    fn put(
        &mut self,
        outdated: &BTreeSet<Arc<Path>>,
        fresh: &Fresh,
    ) -> BTreeMap<ObjectId, Option<Arc<Path>>> {
        let outdated = |path: &Arc<Path>| outdated.contains(path);
        let held = self.holders.iter().filter(|(_, path)| outdated(path));
        let touched = held
            .map(|(id, _)| id)
            .chain(fresh.iter().map(|object| &object.id))
            .map(|id| (id.clone(), self.winner(id).cloned()))
            .collect();
        self.holders.retain(|(_, path)| !outdated(path));
        self.holders.extend(
            fresh
                .iter()
                .map(|object| (object.id.clone(), Arc::clone(&object.path))),
        );
        touched
    }

    /// The file whose version of an object counts.
    fn winner(&self, id: &ObjectId) -> Option<&Arc<Path>> {
        let first = (id.clone(), Arc::from(Path::new("")));
        let (holding, path) = self.holders.range(first..).next()?;
        (holding == id).then_some(path)
    }

    /// Returns the change of an object that some file holds.
    fn change(&self, id: &ObjectId, before: Option<&Path>, fresh: &mut Fresh) -> Option<Change> {
        let winner = self.winner(id)?;
        let place = fresh.binary_search_by(|object| object.place().cmp(&(id, winner)));
        if let Some(manifest) = place.ok().and_then(|place| fresh[place].manifest.take()) {
            return Some(apply(manifest));
        }
        // Either it is what it was, or it is now up to a file that did not change.
        let unchanged = before == Some(winner);
        let reread = || self.read(winner).0.remove(id).map(apply);
        if unchanged { None } else { reread() }
    }

    /// The objects of a file, and whether they are all it holds.
    fn read(&self, path: &Path) -> (BTreeMap<ObjectId, Manifest>, bool) {
        let file = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                warn!(%file, "cannot read file: {error}");
                self.metrics.watch_error(&"Manifest");
                return (BTreeMap::new(), false);
            }
        };
        let Contents {
            objects,
            refused,
            ignored,
        } = document::read(&text, format(path).unwrap_or(Format::Yaml));
        for refused in &refused {
            warn!(%file, "{refused}");
            self.metrics.watch_error(&"Manifest");
        }
        for (kind, count) in ignored {
            info!(%file, count, "ignored: {kind}");
        }
        let mut by_id = BTreeMap::new();
        for object in objects {
            let id = object.id();
            if by_id.insert(id.clone(), object).is_some() {
                warn!(%file, "{} {} is there twice, the last one counts", id.0, id.1);
            }
        }
        (by_id, refused.is_empty())
    }

    fn warn_of_copies(&self, fresh: &Fresh) {
        for FreshObject { id, path, .. } in fresh {
            if let Some(winner) = self.winner(id).filter(|winner| *winner != path) {
                let (file, winner) = (path.display(), winner.display());
                warn!(%file, "{} {} is also in {winner}, which counts", id.0, id.1);
            }
        }
    }
}

impl FreshObject {
    /// Returns the position in the order of [`Directory::holders`].
    fn place(&self) -> (&ObjectId, &Arc<Path>) {
        (&self.id, &self.path)
    }
}

fn apply(object: Manifest) -> Change {
    match object {
        Manifest::Service(service) => Update::Apply(service).into(),
        Manifest::EndpointSlice(slice) => Update::Apply(slice).into(),
        Manifest::Node(node) => Update::Apply(node).into(),
        Manifest::ServiceCidr(cidr) => Update::Apply(cidr).into(),
    }
}

fn missing(kind: Kind, keys: Vec<ObjectKey>) -> Change {
    match kind {
        Kind::Service => Change::Service(Update::Missing(keys)),
        Kind::EndpointSlice => Change::EndpointSlice(Update::Missing(keys)),
        Kind::Node => Change::Node(Update::Missing(keys)),
        Kind::ServiceCidr => Change::ServiceCidr(Update::Missing(keys)),
    }
}
