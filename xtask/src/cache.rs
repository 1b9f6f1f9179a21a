//! The folder for everything that is downloaded or built for development:
//! outside the source tree, shared by all checkouts, safe to delete.
//!
//! ```text
//! <cache>/bin/                what the build and the tests run, as links
//! <cache>/NAME-VERSION/       one tool each; there means complete
//! <cache>/NAME-VERSION.partial/   one being made
//! <cache>/logs/, locks/
//! ```

use std::{
    env,
    fs::{self, File, TryLockError},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

#[derive(Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Keeps other runs from making the same thing, until it is dropped.
pub(crate) struct Lock {
    _file: File,
}

impl Cache {
    /// `$TANDEM_CACHE`, else `$XDG_CACHE_HOME/tandem`, else `~/.cache/tandem`.
    pub(crate) fn locate() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let root = if let Some(folder) = set("TANDEM_CACHE") {
            PathBuf::from(folder)
        } else if let Some(folder) = set("XDG_CACHE_HOME") {
            PathBuf::from(folder).join("tandem")
        } else if let Some(home) = env::home_dir() {
            home.join(".cache/tandem")
        } else {
            bail!("no place for the cache: set TANDEM_CACHE to a folder");
        };
        let root = std::path::absolute(&root)
            .with_context(|| format!("find the cache folder {}", root.display()))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder that goes first on `PATH`.
    pub(crate) fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The folder of one tool of one version.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file that the output of a step is appended to.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Makes the folder `name` with `fill`, unless it is there. It appears
    /// under its name only when `fill` has succeeded.
    pub(crate) fn assemble(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = self.folder(name);
        if folder.exists() {
            return Ok(folder);
        }
        let _lock = self.lock(name)?;
        if folder.exists() {
            return Ok(folder);
        }
        let partial = self.folder(&format!("{name}.partial"));
        remove(&partial)?;
        create(&partial)?;
        fill(&partial)?;
        fs::rename(&partial, &folder)
            .with_context(|| format!("rename {} to {}", partial.display(), folder.display()))?;
        Ok(folder)
    }

    /// Waits until no other run makes `name`, and keeps others from it.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock> {
        let locks = self.root.join("locks");
        create(&locks)?;
        let path = locks.join(name);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            eprintln!("xtask: another run is making {name}; waiting for it");
            file.lock()
                .with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(Lock { _file: file })
    }

    /// Lets `bin/` hold `program` under its own name.
    pub(crate) fn publish(&self, program: &Path) -> Result<()> {
        let Some(name) = program.file_name() else {
            bail!("{} names no program", program.display());
        };
        link(program, &self.bin().join(name))
    }
}

/// Makes `link` point to `target`, whatever it was before.
pub(crate) fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|current| current == target) {
        return Ok(());
    }
    if let Some(folder) = link.parent() {
        create(folder)?;
    }
    // Made aside and renamed: nobody ever finds the link missing.
    let aside = link.with_extension(format!("{}.new", std::process::id()));
    symlink(target, &aside)
        .and_then(|()| fs::rename(&aside, link))
        .with_context(|| format!("link {} to {}", link.display(), target.display()))
}

/// Makes a folder and those above it.
pub(crate) fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Removes a folder with all that is in it, if it is there.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        (folder, Cache { root })
    }

    #[test]
    fn assembles_once() {
        let (_folder, cache) = cache();
        let fill = |folder: &Path| Ok(fs::write(folder.join("tool"), "made")?);

        let made = cache.assemble("tool-1.0", fill).unwrap();
        let again = cache.assemble("tool-1.0", |_| bail!("made twice")).unwrap();

        assert_eq!(made, again);
        assert_eq!(fs::read_to_string(made.join("tool")).unwrap(), "made");
    }

    #[test]
    fn what_failed_is_not_there_and_is_tried_anew() {
        let (_folder, cache) = cache();

        let failed = cache.assemble("tool-1.0", |folder| {
            fs::write(folder.join("half"), "")?;
            bail!("no network")
        });

        assert!(failed.is_err());
        assert!(!cache.folder("tool-1.0").exists());
        let made = cache.assemble("tool-1.0", |_| Ok(())).unwrap();
        assert!(!made.join("half").exists());
    }

    #[test]
    fn publishing_replaces_an_older_version() {
        let (_folder, cache) = cache();
        for version in ["1.0", "2.0"] {
            let program = cache.folder(version).join("tool");
            create(&cache.folder(version)).unwrap();
            fs::write(&program, version).unwrap();
            cache.publish(&program).unwrap();
        }
        assert_eq!(fs::read_to_string(cache.bin().join("tool")).unwrap(), "2.0");
    }
}
