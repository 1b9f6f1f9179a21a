//! The command line. Scripts rely on it: names and meanings stay.
//!
//! Flags that kube-proxy has too are named as there. Every flag is also an
//! environment variable, except the questions to `explain`,
//! and the flags of `cleanup` and `takeover back`.

mod convert;
mod explain;
mod get;
mod kube_proxy;
pub mod layers;
mod node;
mod run;
mod takeover;
mod value;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    Args, Command as ClapCommand, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    ValueEnum,
    builder::Resettable,
    error::{ContextKind, ErrorKind},
};

use self::layers::{Given, LayerError};
pub use self::{
    explain::{ExplainArgs, ExplainOutput},
    get::{GetArgs, Output, Resource},
    kube_proxy::{ConntrackArgs, KubeProxyArgs, OneShotArgs},
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
    /// What the command line says of `run`, where other layers lie below it.
    #[arg(skip)]
    pub given: Given,
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
pub enum Command {
    /// Serve the Services of a cluster, or of a directory of manifests
    Run(RunArgs),
    /// Show the configuration, and where each value comes from
    Config(ConfigArgs),
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

#[derive(Clone, Debug, PartialEq, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
pub enum ConfigCommand {
    /// Show every setting that `run` would have with these flags, this environment and
    /// these files: its value, where that comes from, and whether it means something here
    Show(ShowArgs),
}

#[derive(Clone, Debug, PartialEq, Args)]
pub struct ShowArgs {
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    pub output: ConfigFormat,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConfigFormat {
    Yaml,
    Json,
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
    let args: Vec<OsString> = args.into_iter().collect();
    try_parse(args.clone()).map_err(|error| match error.kind() {
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
            let variable = |name: &str| std::env::var_os(name);
            let source = variable_at_fault(&error, &args, &variable).unwrap_or_default();
            eprintln!("{}{source}", one_line(&error));
            WRONG_USAGE.into()
        }
    })
}

fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let environment = |name: &str| std::env::var_os(name);
    let command = without_empty_variables(command(), &environment);
    let matches = command.try_get_matches_from(kube_proxy::as_ours(args))?;
    explain::refuse_ignored(&matches)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.given = match matches.subcommand() {
        Some(("run", run)) => Given::of(&run_command(), run),
        Some(("config", config)) => match config.subcommand() {
            Some((_, show)) => Given::of(&run_command(), show),
            None => Given::default(),
        },
        _ => Given::default(),
    };
    Ok(cli)
}

/// The command line's definition, with all flags of kube-proxy.
pub fn command() -> ClapCommand {
    Cli::command()
        .mut_subcommand("run", kube_proxy::accept_all)
        .mut_subcommand("config", |config| {
            config.mut_subcommand("show", kube_proxy::accept_all)
        })
}

/// The definition of `run`.
fn run_command() -> ClapCommand {
    let command = command();
    let run = command.find_subcommand("run");
    run.cloned().unwrap_or_default()
}

/// A variable that is empty is not set, for all flags alike.
fn without_empty_variables(
    command: ClapCommand,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> ClapCommand {
    map_arguments(command, &|argument| {
        let name = argument.get_env().and_then(|name| name.to_str());
        let is_empty = name
            .and_then(environment)
            .is_some_and(|value| value.is_empty());
        if is_empty {
            argument.env(Resettable::Reset)
        } else {
            argument
        }
    })
}

/// The same definition, deaf to the environment.
fn without_environment(command: ClapCommand) -> ClapCommand {
    map_arguments(command, &|argument| argument.env(Resettable::Reset))
}

fn map_arguments(command: ClapCommand, map: &dyn Fn(clap::Arg) -> clap::Arg) -> ClapCommand {
    let mut command = command.mut_args(map);
    let names: Vec<_> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, |command| map_arguments(command, map));
    }
    command
}

/// The flags of `run` as they are in a command line and the environment, defaults
/// included, by name.
pub fn flags(args: impl IntoIterator<Item = OsString>) -> BTreeMap<String, String> {
    let command = Cli::command();
    let Ok(matches) = command.clone().try_get_matches_from(args) else {
        return BTreeMap::new();
    };
    let Some((name, found)) = matches.subcommand() else {
        return BTreeMap::new();
    };
    let mut command = command;
    // Flags of all commands belong to each of them only then.
    command.build();
    let arguments = command
        .find_subcommand(name)
        .into_iter()
        .flat_map(clap::Command::get_arguments);
    let flags = arguments.filter_map(|argument| {
        let long = argument.get_long()?;
        let id = argument.get_id().as_str();
        let raw = found.try_get_raw(id).ok()??;
        let values: Vec<_> = raw.map(|value| value.to_string_lossy()).collect();
        Some((long.to_owned(), values.join(",")))
    });
    flags.collect()
}

/// Returns whether a command failed because of what it was told: what clap cannot know
/// to be wrong.
pub fn is_wrong_usage(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || matches!(error.downcast_ref(), Some(LayerError::Usage(_)))
        || error.is::<FlowError>()
        || matches!(
            error.downcast_ref(),
            Some(LogError::Filter { .. } | LogError::Level(_))
        )
}

/// The environment variable that has the value which an error is about, in brackets.
fn variable_at_fault(
    error: &clap::Error,
    args: &[OsString],
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Option<String> {
    let argument = error.get(ContextKind::InvalidArg)?.to_string();
    let flag = argument.split([' ', '=', '[']).next()?;
    let is_given = args
        .iter()
        .any(|arg| arg.to_string_lossy().starts_with(flag));
    let name = layers::variable_of(flag.trim_start_matches("--"));
    let is_set = variable(&name).is_some_and(|value| !value.is_empty());
    (!is_given && is_set).then(|| format!(" (from the environment: {name})"))
}

/// Clap's message without the usage that follows it.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
