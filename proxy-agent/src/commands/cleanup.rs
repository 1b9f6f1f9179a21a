//! `proxy-agent cleanup`: removes everything of ours, and nothing else.

mod kube_proxy;

use std::{fs, io, path::Path};

use anyhow::Context as _;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    cli::CleanupArgs,
    dataplane::{
        attach::{Target, clsact::Filters},
        pins,
    },
    node::netlink::Netlink,
    ownership::{self, Candidate, Name, Ownership},
    sys,
};

/// Time to wait for an owner that is only another short command.
const LOOK: Duration = Duration::from_secs(1);

/// Removes all links, programs and maps below the bpf root, and our clsact
/// filters in this network namespace. Succeeds if there are none.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    sys::capabilities::require_privileges()?;
    if args.kube_proxy {
        return kube_proxy::remove(&args.paths.pins.bpf_root, args.force);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let root = &args.paths.pins.bpf_root;
            let ownership = own(root, args.force).await?;
            detach_clsact().await?;
            remove_layouts(root)?;
            ownership.map_or(Ok(()), |ownership| Ok(ownership.remove()?))
        })
}

/// Becomes the owner of a bpf root, if there is one. An agent that is gives way
/// only if forced to.
async fn own(root: &Path, force: bool) -> anyhow::Result<Option<Ownership>> {
    if !root.exists() {
        return Ok(None);
    }
    let candidate = Candidate::new(root, Name::of_this_process("cleanup", &host_name()));
    if force {
        return Ok(Some(candidate.take_over().await?));
    }
    let start = Instant::now();
    loop {
        if let Some(ownership) = candidate.try_to_own()? {
            return Ok(Some(ownership));
        }
        let owner = ownership::owner(root);
        if let Some(owner) = owner.filter(|_| start.elapsed() > LOOK) {
            anyhow::bail!(
                "{} is in use by {owner}; end it first (on Kubernetes, delete its DaemonSet), or let --force stop it",
                root.display()
            );
        }
        sleep(LOOK / 20).await;
    }
}

fn host_name() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.nodename().to_string_lossy().into_owned())
        .unwrap_or_default()
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

/// Removes the folders of all layout versions. Links are removed first: as long
/// as one is there, its program runs.
fn remove_layouts(root: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", root.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", root.display()))?;
        if pins::is_layout(&entry.path()) {
            remove(&entry.path().join("links"))?;
            remove(&entry.path())?;
        }
    }
    Ok(())
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
