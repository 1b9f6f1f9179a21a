//! The arguments about a node and its cluster, which `run` and `explain` share.

use clap::Args;

use super::value;
use crate::config::{ClusterCidr, DetectLocalMode, FeatureGates, node_ports::NodePortAddresses};

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
        default_value = "false",
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_parser = value::switch
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
    /// Serve NodePorts on the loopback, to processes of the node
    #[arg(
        long,
        env = "TANDEM_IPTABLES_LOCALHOST_NODEPORTS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_parser = value::switch
    )]
    pub iptables_localhost_nodeports: bool,
    /// Features to turn on or off. `AllowServiceExternalIPs`, on by default,
    /// serves spec.externalIPs of Services; others are kube-proxy's and change nothing
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
