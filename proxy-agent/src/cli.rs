//! The command line. Scripts rely on it: names and meanings stay.
//!
//! Flags that kube-proxy has too are named as there. Every flag is also an
//! environment variable, except the questions to `explain`,
//! and the flags of `cleanup` and `takeover back`.

mod convert;
mod explain;
mod get;
mod node;
mod run;
mod takeover;
mod value;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind};

pub use self::{
    explain::{ExplainArgs, ExplainOutput},
    get::{GetArgs, Output, Resource},
    node::NodeArgs,
    run::{Attach, BindAddress, RunArgs, TableArgs},
    takeover::{BackArgs, TakeoverAction, TakeoverArgs},
};
use crate::{
    commands::explain::flow::FlowError,
    config::ConfigError,
    telemetry::{LogError, LogFormat},
};

/// Exit code for a command line that makes no sense.
pub const WRONG_USAGE: u8 = 2;

/// Tandem: a dual-stack Service proxy on eBPF
#[derive(Clone, Debug, PartialEq, Parser)]
#[command(
    name = "proxy-agent",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
pub enum Command {
    /// Serve the Services of a cluster, or of a directory of manifests
    Run(RunArgs),
    /// Show the tables in the kernel
    Get(GetArgs),
    /// Say what would become of a new connection, and why
    Explain(ExplainArgs),
    /// Check whether this host can run the proxy
    Check(PathArgs),
    /// Take over from kube-proxy, or give back to it
    Takeover(TakeoverArgs),
    /// Remove all links, programs and maps of the proxy, and nothing else
    Cleanup(CleanupArgs),
    /// Print a script that completes commands in a shell
    Completions(CompletionsArgs),
    /// Write the manual pages
    Man(ManArgs),
}

/// How the process logs.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Minimum level of log lines, or a filter such as `info,proxy_agent=debug`
    #[arg(long, value_name = "LEVEL", env = "TANDEM_LOG_LEVEL", global = true)]
    pub log_level: Option<String>,
    /// More log lines: -v for debug, -vv for trace
    #[arg(short, long = "verbose", action = clap::ArgAction::Count, global = true)]
    pub verbosity: u8,
    /// Format of log lines
    #[arg(
        long,
        value_name = "FORMAT",
        env = "TANDEM_LOG_FORMAT",
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,
}

/// Where the proxy's objects are in the file system.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Paths")]
pub struct PathArgs {
    #[command(flatten)]
    pub pins: PinArgs,
    /// Cgroup whose processes are served [default: the cgroup2 mount]
    #[arg(long, value_name = "DIR", env = "TANDEM_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
}

/// Where the pins are.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct PinArgs {
    /// Folder of the pins, in a bpf file system
    #[arg(
        long,
        help_heading = "Paths",
        value_name = "DIR",
        env = "TANDEM_BPF_ROOT",
        default_value = "/sys/fs/bpf/tandem"
    )]
    pub bpf_root: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CleanupArgs {
    #[command(flatten)]
    pub paths: PathArgs,
    /// Even if an agent runs, which then ends; with --kube-proxy, even if flows break
    #[arg(long)]
    pub force: bool,
    /// Remove the rules of kube-proxy instead, if that breaks no flow: see `takeover status`
    #[arg(long)]
    pub kube_proxy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ManArgs {
    /// Directory for one page for each command
    pub directory: PathBuf,
}

/// Reads the command line. If it asks for help, or makes no sense, says so and
/// returns how to exit.
#[allow(
    clippy::print_stderr,
    reason = "there is no log yet, and stderr is where errors go"
)]
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    try_parse(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Whoever closed standard output does not want to read it.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            WRONG_USAGE.into()
        }
        _ => {
            eprintln!("{}", one_line(&error));
            WRONG_USAGE.into()
        }
    })
}

fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    explain::refuse_ignored(&matches)?;
    Cli::from_arg_matches(&matches)
}

/// Returns whether a command failed because of what it was told: what clap cannot know
/// to be wrong.
pub fn is_wrong_usage(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<FlowError>()
        || matches!(
            error.downcast_ref(),
            Some(LogError::Filter { .. } | LogError::Level(_))
        )
}

/// Clap's message without the usage that follows it.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
