//! Removes a cluster, whether all of it is there or a part.
//!
//! What bears the cluster's name is all there is: processes are in its network
//! namespaces and control groups, and mounts end with the processes that see
//! them.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::place::{Place, hierarchies};
use crate::{cache, clean, exec};

pub(crate) fn run(place: &Place) -> Result<()> {
    let all = |_: &Path| true;
    remove_groups(place, all)?;
    remove_namespaces(place, all)?;
    cache::remove(place.folder())
}

/// Removes one host, but for its folder.
pub(crate) fn host(place: &Place, host: &str) -> Result<()> {
    let bears_name = |path: &Path| name(path) == place.namespace(host).as_str();
    remove_groups(place, bears_name)?;
    remove_namespaces(place, bears_name)
}

fn remove_groups(place: &Place, which: impl Fn(&Path) -> bool) -> Result<()> {
    let mut hierarchies = hierarchies()?;
    // Groups of the second version end the processes in them.
    hierarchies.sort_by_key(|hierarchy| hierarchy.kind != "cgroup2");
    for hierarchy in &hierarchies {
        let groups = place.named(&hierarchy.point);
        for group in groups.iter().filter(|group| which(group)) {
            if hierarchy.kind == "cgroup2" {
                clean::remove_cgroup(group)?;
            } else {
                clean::remove_cgroup_tree(group)?;
            }
        }
    }
    Ok(())
}

fn remove_namespaces(place: &Place, which: impl Fn(&Path) -> bool) -> Result<()> {
    let namespaces = place.namespaces();
    for namespace in namespaces.iter().filter(|namespace| which(namespace)) {
        clean::kill_within(namespace)?;
        exec::output(
            Command::new("ip")
                .args(["netns", "delete"])
                .arg(name(namespace)),
        )?;
    }
    Ok(())
}

fn name(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}
