//! Where a cluster is on this machine: the names of its network namespaces and
//! control groups, and its folder. Knowing its name is enough to find, and to
//! remove, all of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::cache::Cache;

/// Nodes hide these folders from their programs.
const HIDDEN: [&str; 4] = ["/run", "/tmp", "/var/lib", "/var/log"];

pub(crate) struct Place {
    name: String,
    /// Begins all names.
    prefix: String,
    folder: PathBuf,
}

impl Place {
    pub(crate) fn new(cache: &Cache, name: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        ensure!(
            (1..=16).contains(&name.len()) && name.chars().all(fits),
            "the name of a cluster is 1 to 16 letters and digits, not {name:?}"
        );
        ensure!(
            !HIDDEN.iter().any(|hidden| cache.root().starts_with(hidden)),
            "nodes cannot see {}: set TANDEM_CACHE to a folder outside of {}",
            cache.root().display(),
            HIDDEN.join(", ")
        );
        Ok(Self {
            name: name.to_owned(),
            prefix: format!("tandem-cluster-{name}-"),
            folder: cache.folder("clusters").join(name),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Everything that the cluster keeps on disk.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.folder.join("spec.json")
    }

    /// A file in the cluster's folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder of a node.
    pub(crate) fn node(&self, number: u8) -> PathBuf {
        self.folder.join(node_name(number))
    }

    /// The network namespace of a host.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// The control group of a host, below each hierarchy's root.
    pub(crate) fn group(&self, host: &str) -> String {
        self.namespace(host)
    }

    /// The network namespaces that are there.
    pub(crate) fn namespaces(&self) -> Vec<PathBuf> {
        self.named(Path::new("/run/netns"))
    }

    /// Returns the entries of a folder that bear the cluster's name.
    pub(crate) fn named(&self, folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let mut found: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| name.starts_with(&self.prefix))
            })
            .collect();
        found.sort();
        found
    }

    /// A program in the network namespace of the control plane, which reaches
    /// all nodes and pods.
    pub(crate) fn at_control_plane(&self, program: impl AsRef<Path>) -> Command {
        self.at(CONTROL_PLANE, program)
    }

    /// A program in the network namespace of a host.
    pub(crate) fn at(&self, host: &str, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(host)])
            .arg(program.as_ref());
        command
    }

    /// Fails unless the cluster runs.
    pub(crate) fn running(&self) -> Result<()> {
        ensure!(
            self.spec().exists() && !self.namespaces().is_empty(),
            "there is no such cluster: cargo xtask cluster up makes one"
        );
        Ok(())
    }
}

/// The host of the control plane.
pub(crate) const CONTROL_PLANE: &str = "control-plane";
/// The host that joins all others, and routes to what is outside.
pub(crate) const SWITCH: &str = "switch";
/// A host that is not on the network of the nodes.
pub(crate) const OUTSIDE: &str = "outside";

/// The name of a node, in Kubernetes and on this machine.
pub(crate) fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// A hierarchy of control groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The type or option to mount it with: `cgroup2`, or a controller's name in the first
    /// version.
    pub(crate) kind: String,
}

/// The hierarchies of this machine, each once.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    let controllers = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    Ok(hierarchies_of(&mounts, &controllers))
}

fn hierarchies_of(mounts: &str, controllers: &str) -> Vec<Hierarchy> {
    let known: Vec<_> = controllers
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(point), Some(kind), Some(options)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let kind = match kind {
            "cgroup2" => kind.to_owned(),
            "cgroup" => {
                let wanted = |option: &&str| option.starts_with("name=") || known.contains(option);
                options
                    .split(',')
                    .filter(wanted)
                    .collect::<Vec<_>>()
                    .join(",")
            }
            _ => continue,
        };
        if !found.iter().any(|other| other.kind == kind) {
            let point = point.into();
            found.push(Hierarchy { point, kind });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const CONTROLLERS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                               cpu\t1\t1\t1\ncpuacct\t1\t1\t1\npids\t8\t1\t1\n";

    #[test]
    fn both_versions_of_control_groups_are_found() {
        let mounts = "\
proc /proc proc rw,relatime 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
cgroup2 /elsewhere cgroup2 rw 0 0";
        let found: Vec<_> = hierarchies_of(mounts, CONTROLLERS)
            .into_iter()
            .map(|Hierarchy { point, kind }| (point.display().to_string(), kind))
            .collect();
        let expected = [
            ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            ("/sys/fs/cgroup/systemd", "name=systemd"),
            ("/sys/fs/cgroup/unified", "cgroup2"),
        ]
        .map(|(point, kind)| (point.to_owned(), kind.to_owned()));
        assert_eq!(found, expected);
    }

    fn cache() -> Cache {
        Cache::locate().unwrap()
    }

    #[rstest]
    #[case("")]
    #[case("two words")]
    #[case("../up")]
    #[case("seventeenletters0")]
    fn odd_names_are_refused(#[case] name: &str) {
        assert!(Place::new(&cache(), name).is_err());
    }

    #[test]
    fn a_cluster_finds_what_bears_its_name_only() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "tandem-cluster-a-node-1",
            "tandem-cluster-ab-node-1",
            "other",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let place = Place::new(&cache(), "a").unwrap();
        let expected = [folder.path().join("tandem-cluster-a-node-1")];
        assert_eq!(place.named(folder.path()), expected);
    }
}
