//! The command line. Scripts rely on it: names and meanings stay.
//!
//! Flags that kube-proxy has too are named as there. Every flag is also an
//! environment variable, except the questions to `explain` and
//! `cleanup --force`.

mod convert;
mod value;

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{
    Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    error::ErrorKind, parser::ValueSource,
};
use proxy_common::masquerade::PortRange;

use crate::{
    commands::explain::flow::{Destination, FlowError, Source, Transport, Via},
    config::{
        ClusterCidr, ConfigError, DetectLocalMode, FeatureGates, node_ports::NodePortAddresses,
    },
    dataplane::load::Sizes,
    model::IpFamily,
    socket_lb,
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

#[derive(Clone, Debug, PartialEq, Args)]
pub struct RunArgs {
    /// How to reach the API server [default: the service account of the pod]
    #[arg(
        long,
        help_heading = "Source",
        value_name = "FILE",
        env = "TANDEM_KUBECONFIG",
        conflicts_with = "manifests"
    )]
    pub kubeconfig: Option<PathBuf>,
    /// Read Services and EndpointSlices from manifests below a directory instead
    /// of an API server
    #[arg(
        long,
        help_heading = "Source",
        value_name = "DIR",
        env = "TANDEM_MANIFESTS"
    )]
    pub manifests: Option<PathBuf>,
    #[command(flatten)]
    pub node: NodeArgs,
    #[command(flatten)]
    pub paths: PathArgs,
    #[command(flatten)]
    pub tables: TableArgs,
    /// Ports that masqueraded connections may take towards each backend. A
    /// range that no process of this node uses keeps the two apart
    #[arg(
        long,
        help_heading = "Datapath",
        value_name = "FIRST-LAST",
        env = "TANDEM_MASQUERADE_PORTS",
        default_value = "1024-65535",
        value_parser = value::port_range
    )]
    pub masquerade_ports: PortRange,
    /// How programs are attached to devices
    #[arg(
        long,
        help_heading = "Datapath",
        value_name = "HOW",
        env = "TANDEM_ATTACH",
        default_value = "auto"
    )]
    pub attach: Attach,
    /// Which processes get socket-level load balancing, in connect and sendmsg;
    /// what others send is translated packet by packet
    #[arg(
        long,
        help_heading = "Datapath",
        value_name = "WHOSE",
        env = "TANDEM_SOCKETS",
        default_value = "all"
    )]
    pub sockets: socket_lb::Mode,
    /// Cgroups whose processes get none, by their path below the cgroup root;
    /// `*` stands for any part of a name. May be repeated, or a list with commas
    #[arg(
        long,
        help_heading = "Datapath",
        value_name = "PATH",
        env = "TANDEM_SOCKETS_EXCLUDE_CGROUP",
        value_delimiter = ','
    )]
    pub sockets_exclude_cgroup: Vec<socket_lb::exceptions::Pattern>,
    /// Address that serves metrics and readiness; empty for none
    #[arg(
        long,
        help_heading = "Operation",
        value_name = "IP:PORT",
        env = "TANDEM_METRICS_BIND_ADDRESS",
        default_value = "127.0.0.1:10249",
        value_parser = value::bind_address
    )]
    pub metrics_bind_address: BindAddress,
    /// Minimum interval between two syncs of a family
    #[arg(
        long,
        help_heading = "Operation",
        value_name = "DURATION",
        env = "TANDEM_MIN_SYNC_PERIOD",
        default_value = "0s",
        value_parser = value::duration
    )]
    pub min_sync_period: Duration,
    /// Interval between two audits, which compare the tables with what they
    /// should hold and repair them
    #[arg(
        long,
        help_heading = "Operation",
        value_name = "DURATION",
        env = "TANDEM_AUDIT_PERIOD",
        default_value = "60s",
        value_parser = value::positive_duration
    )]
    pub audit_period: Duration,
}

/// What a node needs to know of itself and of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Node and cluster")]
pub struct NodeArgs {
    /// Name of this node's Node object [default: the host name]
    #[arg(long, value_name = "NAME", env = "TANDEM_HOSTNAME_OVERRIDE")]
    pub hostname_override: Option<String>,
    /// CIDR of all pods of the cluster, or one of each family, with a comma
    #[arg(
        long,
        value_name = "CIDR[,CIDR]",
        env = "TANDEM_CLUSTER_CIDR",
        default_value = "",
        hide_default_value = true,
        value_parser = value::cluster_cidr
    )]
    pub cluster_cidr: ClusterCidr,
    /// How the traffic of pods is told from other traffic
    #[arg(
        long,
        value_name = "MODE",
        env = "TANDEM_DETECT_LOCAL_MODE",
        default_value = "ClusterCIDR"
    )]
    pub detect_local_mode: DetectLocalMode,
    /// The pods' bridge, for `BridgeInterface`
    #[arg(
        long,
        value_name = "DEVICE",
        env = "TANDEM_POD_BRIDGE_INTERFACE",
        required_if_eq("detect_local_mode", "BridgeInterface"),
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub pod_bridge_interface: Option<String>,
    /// Prefix of the names of pods' devices, for `InterfaceNamePrefix`
    #[arg(
        long,
        value_name = "PREFIX",
        env = "TANDEM_POD_INTERFACE_NAME_PREFIX",
        required_if_eq("detect_local_mode", "InterfaceNamePrefix"),
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub pod_interface_name_prefix: Option<String>,
    /// Masquerade all traffic to cluster IPs, also that of pods
    #[arg(
        long,
        env = "TANDEM_MASQUERADE_ALL",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub masquerade_all: bool,
    /// Addresses of this node that serve NodePorts: CIDRs and the keywords
    /// `primary` (the Node object's address of each family), `localhost` and
    /// `all`, with commas. A family that is not named serves them on all of its
    /// addresses
    #[arg(
        long,
        value_name = "CIDR|KEYWORD,...",
        env = "TANDEM_NODEPORT_ADDRESSES",
        default_value = "",
        hide_default_value = true,
        value_parser = value::node_port_addresses
    )]
    pub nodeport_addresses: NodePortAddresses,
    /// Features to turn on or off. `AllowServiceExternalIPs`, on by default,
    /// serves spec.externalIPs of Services
    #[arg(
        long,
        value_name = "NAME=BOOL",
        env = "TANDEM_FEATURE_GATES",
        default_value = "",
        hide_default_value = true,
        value_parser = value::feature_gates
    )]
    pub feature_gates: FeatureGates,
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
    /// Even if an agent runs, which then ends
    #[arg(long)]
    pub force: bool,
}

/// Sizes of the tables. Those of an earlier agent grow to them, and do not shrink.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Table sizes (of each family)")]
pub struct TableArgs {
    /// Service ports [default: 65536; when there are more, as many as a fiftieth of
    /// the node's memory, and a quarter of the memory limit of the agent's
    /// cgroup, has room for]
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_MAX_SERVICE_PORTS",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_service_ports: Option<u32>,
    /// Endpoints of all Service ports together [default: 262144; when there are
    /// more, as with Service ports]
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_MAX_ENDPOINTS",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_endpoints: Option<u32>,
    /// Flows at the same time [default: a power of two from 16384 to 524288, so
    /// that tables of flows take a fiftieth of the node's memory at most, and
    /// half of the memory limit of the agent's cgroup; or what an earlier agent
    /// made, if that is more]
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_FLOW_TABLE_SIZE",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub flow_table_size: Option<u32>,
    /// Service ports of tables that may grow; for tests
    #[arg(
        long,
        hide = true,
        value_name = "N",
        env = "TANDEM_INITIAL_SERVICE_PORTS",
        default_value_t = Sizes::DEFAULT.services,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub initial_service_ports: u32,
    /// Endpoints of tables that may grow; for tests
    #[arg(
        long,
        hide = true,
        value_name = "N",
        env = "TANDEM_INITIAL_ENDPOINTS",
        default_value_t = Sizes::DEFAULT.endpoints,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub initial_endpoints: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// tcx if the kernel has it, else clsact
    Auto,
    /// As tcx links
    Tcx,
    /// As filters of the clsact qdisc
    Clsact,
}

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct GetArgs {
    /// What to show
    pub what: Resource,
    /// Format of the output
    #[arg(
        short,
        long,
        value_name = "FORM",
        default_value = "table",
        env = "TANDEM_OUTPUT"
    )]
    pub output: Output,
    /// Only this IP family
    #[arg(long, value_name = "4|6", value_parser = value::family, env = "TANDEM_FAMILY")]
    pub family: Option<IpFamily>,
    /// Only Services of this namespace
    #[arg(short, long, value_name = "NS", env = "TANDEM_NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub pins: PinArgs,
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExplainOutput {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resource {
    /// Service ports, with their frontends
    Services,
    /// Endpoints of Service ports
    Backends,
    /// Connections that are being translated
    Flows,
    /// Clients with session affinity, and their backends
    Affinity,
    /// Network devices that programs are attached to
    Devices,
    /// The node's own addresses, and which of them serve NodePorts
    Addresses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Yaml,
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
    refuse_ignored(&matches)?;
    Cli::from_arg_matches(&matches)
}

/// `explain` asks a node's own tables, unless there are `--manifests`, and what
/// the agent was told is in them already: a flag that says it again, and may say
/// otherwise, is refused. Settings in the environment are the agent's own.
fn refuse_ignored(matches: &clap::ArgMatches) -> Result<(), clap::Error> {
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
