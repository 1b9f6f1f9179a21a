//! Flags of kube-proxy that `run` has besides: what it does once, and its servers,
//! client and kernel settings. Those without meaning here are accepted, too.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, Args, Command};

use super::{BindAddress, value};
use crate::config::{
    settings::{KUBE_PROXY, Role},
    value::Kind,
};

/// What is done instead of serving.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Configuration")]
pub struct OneShotArgs {
    /// Write the configuration that the flags make to a file, and end
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Do what needs more privileges than serving, and end: mount the bpf file system
    #[arg(long)]
    pub init_only: bool,
    /// The same as `proxy-agent cleanup`
    #[arg(long, hide = true)]
    pub cleanup: bool,
}

/// Settings that kube-proxy has, too.
#[derive(Clone, Debug, PartialEq, Args)]
#[command(next_help_heading = "Operation")]
pub struct KubeProxyArgs {
    /// An address of the family that addresses to listen on have unless they are given
    #[arg(
        long,
        value_name = "IP",
        env = "TANDEM_BIND_ADDRESS",
        default_value = "0.0.0.0"
    )]
    pub bind_address: IpAddr,
    /// Address that serves health checks of the node; empty for none
    #[arg(
        long,
        value_name = "IP[:PORT]",
        env = "TANDEM_HEALTHZ_BIND_ADDRESS",
        default_value = "0.0.0.0:10256",
        value_parser = value::healthz_address
    )]
    pub healthz_bind_address: BindAddress,
    /// End if an address to listen on is taken, instead of trying again
    #[arg(
        long,
        env = "TANDEM_BIND_ADDRESS_HARD_FAIL",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        action = ArgAction::Set,
        value_parser = value::switch
    )]
    pub bind_address_hard_fail: bool,
    /// How readily the kernel ends the agent when memory is short, from -1000 to 1000
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_OOM_SCORE_ADJ",
        default_value = "-999",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000)
    )]
    pub oom_score_adj: i32,
    /// Requests to the API server in a second
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_KUBE_API_QPS",
        default_value = "5"
    )]
    pub kube_api_qps: f32,
    /// Requests to the API server at once
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_KUBE_API_BURST",
        default_value = "10",
        value_parser = clap::value_parser!(u32)
    )]
    pub kube_api_burst: u32,
    #[command(flatten)]
    pub conntrack: ConntrackArgs,
}

/// Settings of netfilter's connection tracking, for the flows of others: Tandem's are not
/// tracked there. Without them nothing is set.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Connection tracking of other flows")]
pub struct ConntrackArgs {
    /// Connections for each processor, 1048576 at most; 0 leaves it alone
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_CONNTRACK_MAX_PER_CORE",
        default_value = "0"
    )]
    pub conntrack_max_per_core: u32,
    /// Connections at least, however few processors there are
    #[arg(
        long,
        value_name = "N",
        env = "TANDEM_CONNTRACK_MIN",
        default_value = "0"
    )]
    pub conntrack_min: u32,
    /// Idle time of established TCP connections; 0 leaves it alone
    #[arg(
        long,
        value_name = "DURATION",
        env = "TANDEM_CONNTRACK_TCP_TIMEOUT_ESTABLISHED",
        default_value = "0s",
        value_parser = value::duration
    )]
    pub conntrack_tcp_timeout_established: Duration,
    /// Idle time of TCP connections in `CLOSE_WAIT`; 0 leaves it alone
    #[arg(
        long,
        value_name = "DURATION",
        env = "TANDEM_CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT",
        default_value = "0s",
        value_parser = value::duration
    )]
    pub conntrack_tcp_timeout_close_wait: Duration,
    /// Segments outside the window are not invalid
    #[arg(
        long,
        env = "TANDEM_CONNTRACK_TCP_BE_LIBERAL",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        action = ArgAction::Set,
        value_parser = value::switch
    )]
    pub conntrack_tcp_be_liberal: bool,
    /// Idle time of UDP without an answer; 0 leaves it alone
    #[arg(
        long,
        value_name = "DURATION",
        env = "TANDEM_CONNTRACK_UDP_TIMEOUT",
        default_value = "0s",
        value_parser = value::duration
    )]
    pub conntrack_udp_timeout: Duration,
    /// Idle time of UDP with an answer; 0 leaves it alone
    #[arg(
        long,
        value_name = "DURATION",
        env = "TANDEM_CONNTRACK_UDP_TIMEOUT_STREAM",
        default_value = "0s",
        value_parser = value::duration
    )]
    pub conntrack_udp_timeout_stream: Duration,
    /// Where the sysctls are; in a container, a mount of the host's
    #[arg(
        long,
        value_name = "DIR",
        env = "TANDEM_PROC_SYS",
        default_value = "/proc/sys"
    )]
    pub proc_sys: PathBuf,
}

/// Adds the flags of kube-proxy that a command does not have.
pub(super) fn accept_all(command: Command) -> Command {
    let mut command = command.args_override_self(true);
    for setting in KUBE_PROXY.iter().filter(|setting| !setting.flag.is_empty()) {
        let is_there = |argument: &Arg| argument.get_long() == Some(setting.flag);
        if command.get_arguments().any(is_there) {
            continue;
        }
        let help = match (setting.role, setting.target()) {
            (_, Some(target)) => format!("The same as --{target}"),
            (Role::Nothing(reason), _) => format!("No meaning here: {reason}"),
            _ => String::new(),
        };
        let argument = Arg::new(setting.flag)
            .long(setting.flag)
            .hide(true)
            .help(help)
            .value_name("VALUE")
            .action(ArgAction::Set);
        command = command.arg(match setting.kind {
            Kind::Bool => argument
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            _ => argument.allow_negative_numbers(true),
        });
    }
    command
}

/// Rewrites what Go's flags take and ours do not: `_` for `-` in names, a level behind
/// `-v`, and lists that are given in several parts.
pub(super) fn as_ours(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> Vec<std::ffi::OsString> {
    let mut ours: Vec<std::ffi::OsString> = Vec::new();
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        let Some(text) = argument.to_str() else {
            ours.push(argument);
            continue;
        };
        let level = |text: &str| text.parse::<u8>().ok();
        let attached = ["--v=", "-v=", "-v"]
            .into_iter()
            .find_map(|name| level(text.strip_prefix(name)?));
        let verbosity = match text {
            "-v" | "--v" => {
                let next = arguments.peek().and_then(|next| level(next.to_str()?));
                if next.is_some() {
                    arguments.next();
                }
                next
            }
            _ => attached,
        };
        if let Some(level) = verbosity {
            // klog's levels: what operators read up to 3, what developers do from 4 on.
            ours.extend(match level {
                0..=3 => None,
                4..=5 => Some("-v".into()),
                _ => Some("-vv".into()),
            });
        } else if let Some(flag) = text.strip_prefix("--") {
            let (name, value) = flag
                .split_once('=')
                .map_or((flag, None), |(name, value)| (name, Some(value)));
            let name = name.replace('_', "-");
            ours.push(match value {
                Some(value) => format!("--{name}={value}").into(),
                None => format!("--{name}").into(),
            });
        } else {
            ours.push(argument);
        }
    }
    joined(ours)
}

/// Joins the parts of lists, which kube-proxy's flags may be given in.
fn joined(arguments: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut whole: Vec<std::ffi::OsString> = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let list = ["--nodeport-addresses", "--feature-gates"]
            .into_iter()
            .find(|list| {
                argument
                    .to_str()
                    .is_some_and(|text| text == *list || text.starts_with(&format!("{list}=")))
            });
        let Some(list) = list else {
            whole.push(argument);
            continue;
        };
        let text = argument.to_string_lossy().into_owned();
        let value = match text.strip_prefix(&format!("{list}=")) {
            Some(value) => Some(value.to_owned()),
            None => arguments
                .next()
                .map(|value| value.to_string_lossy().into_owned()),
        };
        let Some(value) = value else {
            whole.push(argument);
            continue;
        };
        let prefix = format!("{list}=");
        let before = whole
            .iter_mut()
            .find(|other| other.to_string_lossy().starts_with(&prefix));
        match before {
            Some(before) => {
                before.push(",");
                before.push(value);
            }
            None => whole.push(format!("{prefix}{value}").into()),
        }
    }
    whole
}
