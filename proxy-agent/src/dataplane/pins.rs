//! Paths of the pins below a bpf root.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use proxy_common::{
    FLOW_LAYOUT, LAYOUT_VERSION,
    table::{Scope, Table},
};

/// Folders below a bpf root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

/// Returns whether a folder is that of a layout version: `v1`, `v2` …
pub fn is_layout(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix('v'))
        .is_some_and(|version| !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()))
}

/// The layout that the flows in a layout version's folder have, if it says so.
pub fn flow_layout(folder: &Path) -> Option<u32> {
    let link = fs::read_link(folder.join(FLOW_LAYOUT_LINK)).ok()?;
    link.to_str()?.parse().ok()
}

// Symbolic links with a number for their text: what a bpf file system can hold.
const FLOW_LAYOUT_LINK: &str = "flow-layout";
const PROGRAMS_LINK: &str = "programs-of";

impl Pins {
    /// Pins below `root`, a folder in a bpf file system.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The bpf root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of this layout version.
    pub fn version(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// Folders of other layout versions that are there.
    pub fn other_layouts(&self) -> Vec<PathBuf> {
        let current = self.version();
        let entries = fs::read_dir(&self.root).into_iter().flatten();
        let mut others: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| *path != current && is_layout(path))
            .collect();
        others.sort();
        others
    }

    /// Says which layout the flows in the folder of this version have.
    pub fn state_flow_layout(&self) -> io::Result<()> {
        let link = self.version().join(FLOW_LAYOUT_LINK);
        match symlink(FLOW_LAYOUT.to_string(), link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// What the pinned programs were made from, if all of them are of one agent.
    pub fn programs_identity(&self) -> Option<u64> {
        let link = fs::read_link(self.version().join(PROGRAMS_LINK)).ok()?;
        link.to_str()?.parse().ok()
    }

    /// Says what the pinned programs were made from; `None`: they are of several agents,
    /// or about to be.
    pub fn state_programs_identity(&self, identity: Option<u64>) -> io::Result<()> {
        let link = self.version().join(PROGRAMS_LINK);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        identity.map_or(Ok(()), |identity| symlink(identity.to_string(), link))
    }

    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn programs(&self) -> PathBuf {
        self.version().join("programs")
    }

    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// All pinned maps, with the names of their pins.
    pub fn tables() -> impl Iterator<Item = (Table, String)> {
        let tables = Table::ALL.iter().copied();
        tables
            .filter(|table| table.is_pinned())
            .flat_map(|table| names(table).map(move |name| (table, name)))
    }
}

/// Returns the names of a map: one, or one for each family.
pub fn names(table: Table) -> impl Iterator<Item = String> {
    let suffixes: &[&str] = match table.scope() {
        Scope::Node => &[""],
        Scope::Family => &["_V4", "_V6"],
    };
    suffixes
        .iter()
        .map(move |suffix| format!("{table}{suffix}"))
}
