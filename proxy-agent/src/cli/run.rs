//! The arguments of `run`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use proxy_common::masquerade::PortRange;

use super::{KubeProxyArgs, NodeArgs, PathArgs, kube_proxy::OneShotArgs, value};
use crate::{dataplane::load::Sizes, socket_lb};

#[derive(Clone, Debug, PartialEq, Args)]
pub struct RunArgs {
    /// kube-proxy's configuration, as the cluster's `ConfigMap` has it: a file, or a
    /// folder that the `ConfigMap` is mounted at and that may be empty. Several, with commas,
    /// may hold a `ProxyConfiguration` of ours, too
    #[arg(
        long,
        help_heading = "Configuration",
        value_name = "PATH",
        env = "TANDEM_CONFIG",
        value_delimiter = ','
    )]
    pub config: Vec<PathBuf>,
    #[command(flatten)]
    pub one_shot: OneShotArgs,
    /// How to reach the API server, with the server's address [default: what is found
    /// on the node, with the service account of the pod]
    #[arg(
        long,
        help_heading = "Source",
        value_name = "FILE",
        env = "TANDEM_KUBECONFIG",
        conflicts_with = "manifests"
    )]
    pub kubeconfig: Option<PathBuf>,
    /// API servers, whatever the kubeconfig says. When one cannot be reached, the next
    /// one is asked
    #[arg(
        long,
        help_heading = "Source",
        value_name = "URL,...",
        env = "TANDEM_MASTER",
        value_delimiter = ',',
        conflicts_with = "manifests",
        value_parser = value::server
    )]
    pub master: Vec<String>,
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
    #[command(flatten)]
    pub kube_proxy: KubeProxyArgs,
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
        value_parser = value::metrics_address
    )]
    pub metrics_bind_address: BindAddress,
    /// Take the taint with this key off the node once Services work here
    #[arg(
        long,
        help_heading = "Operation",
        value_name = "KEY",
        env = "TANDEM_REMOVE_TAINT",
        conflicts_with = "manifests"
    )]
    pub remove_taint: Option<String>,
    /// Folder that keeps the last known state of the cluster, which is served after a
    /// reboot until the API server answers; empty for none. Not used with
    /// `--manifests`
    #[arg(
        long,
        help_heading = "Operation",
        value_name = "DIR",
        env = "TANDEM_STATE_DIR",
        default_value = "/var/lib/tandem"
    )]
    pub state_dir: OptionalPath,
    /// Take most Services off at once when a list or the manifests have them no
    /// more, rather than a minute later
    #[arg(long, help_heading = "Operation", env = "TANDEM_ALLOW_EMPTY")]
    pub allow_empty: bool,
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

/// A path, or none if it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionalPath(pub Option<PathBuf>);

impl std::str::FromStr for OptionalPath {
    type Err = std::convert::Infallible;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Ok(Self((!raw.is_empty()).then(|| raw.into())))
    }
}

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);
