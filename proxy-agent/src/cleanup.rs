//! `proxy-agent cleanup`: removes everything of ours, and nothing else.

use std::{fs, io, path::Path};

use anyhow::Context as _;

use crate::{
    cli::PathArgs,
    dataplane::attach::{Target, clsact::Filters},
    devices::netlink::Netlink,
    system,
};

/// Removes all links, programs and maps below the bpf root, and our clsact
/// filters in this network namespace. Nothing there is nothing to do.
pub fn cleanup(paths: &PathArgs) -> anyhow::Result<()> {
    system::require_privileges()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(detach_clsact())?;
    remove_layouts(&paths.bpf_root)
}

/// Filters are not pinned: they are found on the devices.
async fn detach_clsact() -> anyhow::Result<()> {
    let filters = Filters::open().context("open a netlink socket")?;
    for link in Netlink::open()?.links().await? {
        let target = Target {
            name: &link.name,
            ifindex: link.ifindex,
            layer3: false,
        };
        filters
            .remove_ours(&target)
            .await
            .with_context(|| format!("take our programs off device {}", link.name))?;
    }
    Ok(())
}

/// Removes the folders of all layout versions, and the root if it is empty
/// then. Links are removed first: as long as one is there, its program runs.
fn remove_layouts(root: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", root.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", root.display()))?;
        if is_layout(&entry.file_name().to_string_lossy()) {
            for part in ["links", "programs", "maps"] {
                remove(&entry.path().join(part))?;
            }
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
            Err(error).with_context(|| format!("remove {}", root.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a folder is one of ours: `v1`, `v2` …
fn is_layout(name: &str) -> bool {
    name.strip_prefix('v')
        .is_some_and(|version| !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_its_own_folders_only() {
        let root = tempfile::tempdir().expect("a folder");
        for folder in ["v1/maps", "v1/links", "v12/programs", "vault", "v"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        remove_layouts(root.path()).expect("removed");
        let mut left: Vec<_> = fs::read_dir(root.path())
            .expect("still there, because others' folders are in it")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["v", "vault"]);
    }

    #[test]
    fn nothing_there_is_nothing_to_do() {
        let root = tempfile::tempdir().expect("a folder");
        remove_layouts(&root.path().join("missing")).expect("nothing to do");
    }
}
