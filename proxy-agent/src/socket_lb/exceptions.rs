//! Cgroups whose processes the socket programs leave alone: what the operator
//! took out by path.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A path below the cgroup root. `*` in a name stands for any characters of
/// that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

/// An error in a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("expected a path below the cgroup root, such as kubepods.slice/kubepods-*.slice")]
    Empty,
    #[error("the path must not contain .. or .")]
    Dots,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(raw: &str) -> Result<Self, PatternError> {
        let names: Vec<_> = raw
            .trim()
            .split('/')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            Err(PatternError::Empty)
        } else if names.iter().any(|name| name == "." || name == "..") {
            Err(PatternError::Dots)
        } else {
            Ok(Self(names))
        }
    }
}

/// The cgroups that match the patterns at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exceptions {
    /// Ids of the cgroups themselves; those below belong to them.
    pub cgroups: BTreeSet<u64>,
    /// Folders in which more may appear.
    pub folders: BTreeSet<PathBuf>,
}

impl Exceptions {
    /// Looks at the cgroups that are there.
    pub fn find<'a>(root: &Path, patterns: impl IntoIterator<Item = &'a Pattern>) -> Self {
        let mut exceptions = Self::default();
        for Pattern(names) in patterns {
            exceptions.descend(root, names);
        }
        exceptions
    }

    fn descend(&mut self, folder: &Path, names: &[String]) {
        let Some((name, below)) = names.split_first() else {
            // The id that programs see is the folder's inode number.
            self.cgroups
                .extend(fs::metadata(folder).map(|metadata| metadata.ino()));
            return;
        };
        // Before it is read, so that nothing appears unseen in between.
        self.folders.insert(folder.to_owned());
        // What goes away meanwhile has no processes.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && matches(name, &entry.file_name().to_string_lossy()) {
                self.descend(&entry.path(), below);
            }
        }
    }
}

/// Returns whether a name is one that the pattern stands for.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((front, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    name.strip_prefix(front).is_some_and(|name| {
        name.char_indices()
            .map(|(index, _)| &name[index..])
            .chain([""])
            .any(|tail| matches(rest, tail))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a", "a", true)]
    #[case("a", "ab", false)]
    #[case("*", "anything", true)]
    #[case("pod*.slice", "pod1.slice", true)]
    #[case("pod*.slice", "pod1.scope", false)]
    #[case("*-gvisor-*", "x-gvisor-y", true)]
    #[case("a*b*c", "abbc", true)]
    #[case("a*b*c", "acb", false)]
    #[case("a*", "a", true)]
    fn names_match_patterns(#[case] pattern: &str, #[case] name: &str, #[case] expected: bool) {
        assert_eq!(matches(pattern, name), expected);
    }

    #[rstest]
    #[case("", PatternError::Empty)]
    #[case("/", PatternError::Empty)]
    #[case("a/../b", PatternError::Dots)]
    fn refuses_what_is_no_path(#[case] raw: &str, #[case] error: PatternError) {
        assert_eq!(raw.parse::<Pattern>(), Err(error));
    }

    #[test]
    fn finds_cgroups_and_where_more_may_appear() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        for folder in ["a.slice/pod1/x", "a.slice/pod2", "b.slice/pod3", "c/pod4"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        fs::write(root.join("a.slice/podfile"), "").expect("a file");
        let patterns = ["*.slice/pod*".parse().expect("a pattern")];
        let found = Exceptions::find(root, &patterns);
        let id = |path: &str| fs::metadata(root.join(path)).expect("there").ino();
        assert_eq!(
            found.cgroups,
            ["a.slice/pod1", "a.slice/pod2", "b.slice/pod3"]
                .map(id)
                .into()
        );
        assert_eq!(
            found.folders,
            [root.to_owned(), root.join("a.slice"), root.join("b.slice")].into()
        );
    }
}
