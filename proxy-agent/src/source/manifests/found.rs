//! The listing of a directory of manifests.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{ManifestError, document::Format, watch::Watch};

/// The manifests below a folder.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The files, as they are now.
    pub(super) files: BTreeMap<Arc<Path>, Stamp>,
    /// Files and folders that cannot be looked at, and why.
    pub(super) refused: BTreeMap<PathBuf, String>,
}

/// Differs between any two versions of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&fs::Metadata> for Stamp {
    fn from(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Found {
    /// Finds all manifests below a folder, and watches it, if there is a watch.
    /// Fails only if the folder itself cannot be read.
    pub(super) fn below(root: &Path, watch: Option<&Watch>) -> Result<Self, ManifestError> {
        if let Some(watch) = watch
            && root.is_symlink()
            && let Some(parent) = root.parent()
        {
            // Where the link may be replaced by another one.
            watch.add(if parent == Path::new("") {
                Path::new(".")
            } else {
                parent
            })?;
        }
        let mut found = Self::default();
        found.walk(root, watch)?;
        Ok(found)
    }

    /// Returns whether a file is there, or may be.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.files.contains_key(path)
            || self.refused.keys().any(|refused| path.starts_with(refused))
    }

    fn walk(&mut self, folder: &Path, watch: Option<&Watch>) -> Result<(), ManifestError> {
        let failed = |source| ManifestError::Read {
            path: folder.to_owned(),
            source,
        };
        // First the watch: what comes after the listing is then not missed.
        if let Some(watch) = watch {
            watch.add(folder)?;
        }
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            match self.look(&entry, watch) {
                // Gone in the meantime, or a link to nowhere.
                Err(_) if !path.is_symlink() && !path.exists() => {}
                Err(ManifestError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let reason = format!("{:#}", anyhow::Error::new(error));
                    self.refused.insert(path, reason);
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn look(&mut self, entry: &fs::DirEntry, watch: Option<&Watch>) -> Result<(), ManifestError> {
        let path = entry.path();
        let failed = |source| ManifestError::Read {
            path: path.clone(),
            source,
        };
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            return self.walk(&path, watch);
        }
        if format(&path).is_none() {
            return Ok(());
        }
        if let Some(watch) = watch
            && kind.is_symlink()
            && path.exists()
        {
            watch.add_file(&path)?;
        }
        let metadata = fs::metadata(&path).map_err(failed)?;
        if metadata.is_file() {
            self.files.insert(path.into(), Stamp::from(&metadata));
        }
        Ok(())
    }
}

/// Returns the syntax of a file by its name; `None` if it is not a manifest.
pub(super) fn format(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}
