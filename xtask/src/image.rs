//! `image`: the container image, as an OCI archive that containerd, podman
//! and skopeo load. It holds one file, the statically linked agent.

pub(crate) mod archive;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use self::archive::Settings;
use crate::{
    build,
    cache::{self, Cache},
    exec, setup, workspace,
};

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
    let cache = Cache::locate()?;
    setup::toolchain(&cache)?;
    let agent = build::static_agent(&cache)?;
    exec::timed("image", || assemble(&agent, &tag, &output))?;
    eprintln!("xtask: wrote {tag} to {}", output.display());
    Ok(())
}

fn assemble(agent: &Path, tag: &str, output: &Path) -> Result<()> {
    let root = workspace::target().join("image");
    cache::remove(&root)?;
    cache::create(&root)?;
    fs::copy(agent, root.join("proxy-agent"))
        .with_context(|| format!("copy {}", agent.display()))?;
    archive::write(&root, &settings()?, tag, output)
}

/// How the agent is started, as the Containerfile says it.
pub(crate) fn settings() -> Result<Settings> {
    let file = workspace::root().join("manifests/Containerfile");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    Settings::of_containerfile(&text)
}
