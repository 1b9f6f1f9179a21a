//! The arguments of `explain`.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, CommandFactory as _, ValueEnum, error::ErrorKind, parser::ValueSource};

use super::{Cli, NodeArgs, PinArgs};
use crate::commands::explain::flow::{Destination, Source, Transport, Via};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ExplainArgs {
    /// The client. Its port decides which backend is chosen; without a port, the
    /// backend is an example
    #[arg(long, value_name = "IP[:PORT]", required_unless_present = "flows")]
    pub from: Option<Source>,
    /// Destination address
    #[arg(long, value_name = "IP:PORT", required_unless_present = "flows")]
    pub to: Option<Destination>,
    /// Transport protocol
    #[arg(
        long,
        value_name = "tcp|udp|sctp",
        default_value = "tcp",
        ignore_case = true
    )]
    pub protocol: Transport,
    /// Where the client is: a pod of this node, this node itself, or
    /// elsewhere [default: what its address suggests]
    #[arg(long, value_name = "pod|node|external")]
    pub via: Option<Via>,
    /// Ask about many flows: a file with a JSON array of {from, to, protocol, via},
    /// or - for standard input. The answer is an array in the same order
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["from", "to", "protocol", "via"]
    )]
    pub flows: Option<PathBuf>,
    /// Format of the output [default: text, or json with --flows]
    #[arg(short, long, value_name = "text|json")]
    pub output: Option<ExplainOutput>,
    /// Ask about the manifests below a directory instead of this node's tables;
    /// needs no agent, no cluster and no devices
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Addresses of the node, with --manifests [default: those of its Node
    /// object]
    #[arg(long, value_name = "IP", value_delimiter = ',', requires = "manifests")]
    pub node_address: Vec<IpAddr>,
    #[command(flatten)]
    pub node: NodeArgs,
    #[command(flatten)]
    pub pins: PinArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExplainOutput {
    Text,
    Json,
}

/// `explain` asks a node's own tables, unless there are `--manifests`, and what
/// the agent was told is in them already: a flag that says it again, and may say
/// otherwise, is refused. Settings in the environment are the agent's own.
pub(super) fn refuse_ignored(matches: &clap::ArgMatches) -> Result<(), clap::Error> {
    let Some(("explain", given)) = matches.subcommand() else {
        return Ok(());
    };
    if given.value_source("manifests").is_some() {
        return Ok(());
    }
    let about_node = NodeArgs::augment_args(clap::Command::new("explain"));
    let mut ignored = about_node.get_arguments().filter(|argument| {
        let id = argument.get_id().as_str();
        // It tells where a client probably is.
        id != "cluster_cidr" && given.value_source(id) == Some(ValueSource::CommandLine)
    });
    match ignored.next().and_then(clap::Arg::get_long) {
        None => Ok(()),
        Some(flag) => Err(Cli::command().error(
            ErrorKind::ArgumentConflict,
            format!(
                "--{flag} goes with --manifests only: a node's tables are as its agent was told"
            ),
        )),
    }
}
