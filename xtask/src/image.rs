//! `image`: the container image, as an OCI archive that containerd, podman
//! and skopeo load. It holds one file, the statically linked agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::cache::{self, Cache};
use crate::{exec, setup, workspace};

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name and tag inside the archive [default: localhost/tandem:VERSION]
    #[arg(long)]
    tag: Option<String>,
    /// The archive [default: tandem-VERSION.oci.tar in the target folder]
    #[arg(long)]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { tag, output } = args;
    let tag = tag
        .clone()
        .unwrap_or_else(|| format!("localhost/tandem:{VERSION}"));
    let output = output
        .clone()
        .unwrap_or_else(|| workspace::target().join(format!("tandem-{VERSION}.oci.tar")));
    if exec::find("buildah").is_none() {
        bail!("buildah is missing: install the package buildah");
    }
    let cache = Cache::locate()?;
    setup::toolchain(&cache)?;
    let agent = build::static_agent(&cache)?;
    exec::timed("image", || assemble(&cache, &agent, &tag, &output))?;
    eprintln!("xtask: wrote {tag} to {}", output.display());
    Ok(())
}

fn assemble(cache: &Cache, agent: &Path, tag: &str, output: &Path) -> Result<()> {
    let folder = workspace::target().join("image");
    // What earlier runs stored would stay there for good.
    cache::remove(&folder)?;
    let context = folder.join("context");
    cache::create(&context)?;
    fs::copy(agent, context.join("proxy-agent"))
        .with_context(|| format!("copy {}", agent.display()))?;

    let log = cache.log("image");
    let mut build = buildah(&folder);
    build
        .args(["build", "--isolation", "chroot", "--tag", tag, "--file"])
        .arg(workspace::root().join("manifests/Containerfile"))
        .arg(&context);
    exec::step(&log, &mut build)?;

    // buildah adds to an archive that is there.
    if output.exists() {
        fs::remove_file(output).with_context(|| format!("replace {}", output.display()))?;
    }
    let mut push = buildah(&folder);
    push.args(["push", tag])
        .arg(format!("oci-archive:{}:{tag}", output.display()));
    exec::step(&log, &mut push)
}

/// buildah with a storage of its own, which needs neither overlayfs nor a
/// container runtime.
fn buildah(folder: &Path) -> Command {
    let mut command = Command::new("buildah");
    command
        .args(["--storage-driver", "vfs", "--root"])
        .arg(folder.join("storage"))
        .arg("--runroot")
        .arg(folder.join("run"));
    command
}
