//! Where things are pinned.

use std::path::{Path, PathBuf};

use proxy_common::LAYOUT_VERSION;

/// Folders below a bpf root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

/// Names of all maps that are pinned, without the family's suffix.
pub const FAMILY_MAPS: [&str; 12] = [
    "FRONTENDS",
    "SERVICES",
    "SLOTS",
    "BACKENDS",
    "FLOWS",
    "MASQ",
    "FRAGMENTS",
    "PREFILTER",
    "NAMES",
    "LOCAL_ADDRS",
    "SOURCE_RANGES",
    "AFFINITY",
];

/// Names of the pinned maps that both families share.
pub const SHARED_MAPS: [&str; 8] = [
    "CONFIG",
    "COUNTERS",
    "DEVICES",
    "PROGRAMS",
    "REFUSALS",
    "SWEEPS",
    "SOCKETS",
    "EXCEPTIONS",
];

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

    /// All names of pinned maps, suffixes included.
    pub fn map_names() -> impl Iterator<Item = String> {
        SHARED_MAPS
            .iter()
            .map(ToString::to_string)
            .chain(["V4", "V6"].into_iter().flat_map(|suffix| {
                FAMILY_MAPS
                    .iter()
                    .map(move |name| format!("{name}_{suffix}"))
            }))
    }
}
