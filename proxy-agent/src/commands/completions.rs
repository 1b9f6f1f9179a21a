//! `proxy-agent completions`: a script for a shell.

use std::io;

use clap::CommandFactory as _;

use crate::cli::{Cli, CompletionsArgs};

/// Writes the script to standard output.
pub fn print(args: &CompletionsArgs) {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut io::stdout());
}
