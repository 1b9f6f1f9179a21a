//! `proxy-agent man`: the manual pages.

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::{Cli, ManArgs};

/// Writes one page for the program and one for each of its commands.
pub fn write(args: &ManArgs) -> anyhow::Result<()> {
    let ManArgs { directory } = args;
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("write manual pages to {}", directory.display()))
}
