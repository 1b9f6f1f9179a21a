//! Named network namespaces.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
};

use crate::exec;

/// The folder in which `ip netns` keeps its names.
const DIRECTORY: &str = "/run/netns";

/// A network namespace, removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Creates the namespaces of `names`, in that order, with one command.
    pub fn create_all(names: &[String]) -> Result<Vec<Self>> {
        let batch: Vec<_> = names
            .iter()
            .map(|name| format!("netns add {name}"))
            .collect();
        exec::run("ip", &["-batch", "-"], &batch.join("\n"))?;
        names.iter().map(|name| Self::open(name)).collect()
    }

    /// Creates one namespace.
    pub fn create(name: &str) -> Result<Self> {
        exec::run("ip", &["netns", "add", name], "")?;
        Self::open(name)
    }

    fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let handle = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(Self {
            name: name.to_owned(),
            handle,
        })
    }

    /// The name `ip netns list` shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread, and no other, into this namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&self.handle, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let path = path_of(&self.name);
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&path);
    }
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(name)
}
