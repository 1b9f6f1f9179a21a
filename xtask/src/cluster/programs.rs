//! Programs of nodes that are not Kubernetes' own, built from their modules.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    cache::{self, Cache},
    exec,
    setup::go::{self, Module},
    version::Version,
};

/// The container runtime.
pub(crate) const CONTAINERD: Source = Source {
    name: "containerd",
    module: "github.com/containerd/containerd/v2",
    version: Version::new(2, 1, 9),
    packages: &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
    tags: "no_btrfs,no_zfs,no_devmapper,no_aufs",
    main: None,
};

/// The DNS server. Its own program has all plugins there are; this one has
/// those that a cluster asks for.
pub(crate) const COREDNS: Source = Source {
    name: "coredns",
    module: "github.com/coredns/coredns",
    version: Version::new(1, 14, 7),
    packages: &[],
    tags: "",
    main: Some(include_str!("coredns.go")),
};

/// The program that joins nodes by tunnels or routes. The network is made of its packages:
/// its own program wants the libraries of all clouds.
pub(crate) const FLANNEL: Source = Source {
    name: "flannel",
    module: "github.com/flannel-io/flannel",
    version: Version::new(0, 28, 10),
    packages: &[],
    tags: "",
    main: Some(include_str!("flannel.go")),
};

/// An engine of network policies that works by netfilter.
pub(crate) const KUBE_ROUTER: Source = Source {
    name: "kube-router",
    module: "github.com/cloudnativelabs/kube-router/v2",
    version: Version::new(2, 1, 0),
    packages: &["cmd/kube-router"],
    tags: "",
    main: None,
};

/// Programs of one module.
pub(crate) struct Source {
    name: &'static str,
    module: &'static str,
    pub(crate) version: Version,
    /// Paths in the module.
    packages: &'static [&'static str],
    tags: &'static str,
    main: Option<&'static str>,
}

impl Source {
    /// Returns the folder with the programs, which it makes if it is not there.
    pub(crate) fn ensure(&self, cache: &Cache) -> Result<PathBuf> {
        let label = format!("{}-{}", self.name, self.version);
        if cache.folder(&label).exists() {
            return Ok(cache.folder(&label));
        }
        exec::timed(&label, || {
            let folder = cache.assemble(&label, |folder| self.build(cache, folder))?;
            eprintln!("xtask: {label} has {}", size(&folder)?);
            Ok(folder)
        })
    }

    fn build(&self, cache: &Cache, folder: &Path) -> Result<()> {
        let mut module = Module::download(cache, self.module, self.version)?;
        module.go_mod = Module::requiring(&module.go_mod, self.module, self.version)?;
        module.tags = self.tags;
        module.main = self.main;
        let mut packages: Vec<_> = self
            .packages
            .iter()
            .map(|package| {
                format!("{}/{package}", self.module)
                    .trim_end_matches('/')
                    .to_owned()
            })
            .collect();
        if self.main.is_some() {
            packages.push(".".to_owned());
        }
        module.build(cache, packages, |built| {
            let programs = fs::read_dir(built).context("see what was built")?;
            for program in programs {
                let program = program.context("see what was built")?;
                let name = match self.main {
                    // go calls it after the module that builds it.
                    Some(_) => self.name.into(),
                    None => program.file_name(),
                };
                go::install(&program.path(), &folder.join(name))?;
            }
            Ok(())
        })
    }
}

/// How much a folder takes on disk, for people.
pub(crate) fn size(folder: &Path) -> Result<String> {
    // What is removed meanwhile makes it fail, after it has said the rest.
    let output = Command::new("du")
        .arg("-sm")
        .arg(folder)
        .output()
        .context("start du")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let megabytes = text.split_whitespace().next().unwrap_or("?");
    Ok(format!("{megabytes} MB"))
}

/// Puts what a program is into a folder under its own name.
pub(crate) fn copy(program: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        cache::create(folder)?;
    }
    fs::copy(program, to).with_context(|| format!("copy {}", program.display()))?;
    Ok(())
}
