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
    let mut hierarchies = hierarchies()?;
    // Groups of the second version end the processes in them.
    hierarchies.sort_by_key(|hierarchy| hierarchy.kind != "cgroup2");
    for hierarchy in &hierarchies {
        for group in place.named(&hierarchy.point) {
            if hierarchy.kind == "cgroup2" {
                clean::remove_cgroup(&group)?;
            } else {
                clean::remove_cgroup_tree(&group)?;
            }
        }
    }
    for namespace in place.namespaces() {
        clean::kill_within(&namespace)?;
        exec::output(
            Command::new("ip")
                .args(["netns", "delete"])
                .arg(name(&namespace)),
        )?;
    }
    cache::remove(place.folder())
}

fn name(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}
