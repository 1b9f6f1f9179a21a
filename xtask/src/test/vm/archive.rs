//! An initial RAM file system: a cpio archive in the format `newc`, which the
//! kernel unpacks into its root (Documentation/driver-api/early-userspace).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
/// Folders below `usr` with all programs and libraries; the root has links to them, as
/// on the distributions.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Writes an archive. A path that is there already is kept as it is.
pub(super) struct Archive<W> {
    output: W,
    written: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(output: W) -> io::Result<Self> {
        let mut archive = Self {
            output,
            written: BTreeSet::new(),
        };
        for name in MERGED {
            archive.folder(Path::new("/usr").join(name))?;
            archive.entry(name.into(), LINK, format!("usr/{name}").as_bytes())?;
        }
        Ok(archive)
    }

    /// Adds a folder and those above it.
    pub(super) fn folder(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = place(path.as_ref());
        let mut folders: Vec<_> = path.ancestors().collect();
        folders.pop();
        for folder in folders.into_iter().rev() {
            self.entry(folder.to_owned(), FOLDER, &[])?;
        }
        Ok(())
    }

    /// Adds a file, which everybody may run, and the folders above it.
    pub(super) fn file(&mut self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        self.below_folder(path.as_ref(), FILE, bytes)
    }

    /// Adds a symbolic link and the folders above it.
    pub(super) fn link(&mut self, path: impl AsRef<Path>, target: &str) -> io::Result<()> {
        self.below_folder(path.as_ref(), LINK, target.as_bytes())
    }

    /// Returns whether something is at this path.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.written.contains(&place(path))
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.raw("TRAILER!!!", 0, &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn below_folder(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            self.folder(folder)?;
        }
        self.entry(place(path), mode, bytes)
    }

    fn entry(&mut self, path: PathBuf, mode: u32, bytes: &[u8]) -> io::Result<()> {
        if self.written.contains(&path) {
            return Ok(());
        }
        let name = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        self.raw(name, mode, bytes)?;
        self.written.insert(path);
        Ok(())
    }

    fn raw(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge);
        // Inode, mode, owner, group, links, time, size, four device numbers,
        // length of the name, checksum.
        let fields = [
            length(self.written.len() + 1)?,
            mode,
            0,
            0,
            1,
            0,
            length(bytes.len())?,
            0,
            0,
            0,
            0,
            length(name.len() + 1)?,
            0,
        ];
        let fields = fields.map(|field| format!("{field:08x}"));
        let head = format!("070701{}{name}\0", fields.concat());
        self.padded(head.as_bytes())?;
        self.padded(bytes)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.output.write_all(&[0; 4][..padding])
    }
}

/// The path in the archive: relative, without `..`, and below `usr` what is
/// only linked elsewhere.
fn place(path: &Path) -> PathBuf {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir => drop(parts.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let is_linked = parts
        .first()
        .is_some_and(|first| MERGED.iter().any(|name| name == first));
    let top = if is_linked { "usr" } else { "" };
    Path::new(top).join(parts.iter().collect::<PathBuf>())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::merged("/lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2")]
    #[case::as_it_is("/etc/protocols", "etc/protocols")]
    #[case::roundabout("/usr/lib/x/../libz.so", "usr/lib/libz.so")]
    fn a_path_has_one_place(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(place(Path::new(path)), Path::new(expected));
    }

    #[test]
    fn a_file_comes_once_and_after_its_folders() {
        let mut archive = Archive::new(Vec::new()).unwrap();
        archive.file("/opt/tool", b"12345").unwrap();
        archive.file("/opt/tool", b"other").unwrap();
        let bytes = archive.finish().unwrap();

        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len() % 4, 0);
        let folder = text.find("opt\0").unwrap();
        let file = text.find("opt/tool\0").unwrap();
        assert!(folder < file);
        assert_eq!(text.matches("opt/tool\0").count(), 1);
        // The head of 110 bytes and the name of 9 are padded to 120.
        let start = file - 110;
        assert_eq!(&text[start + 120..start + 128], "12345\0\0\0");
        assert_eq!(&text[start + 54..start + 62], "00000005");
    }
}
