//! The settings of `run`, checked and typed.

pub(crate) mod configz;
pub mod file;
pub(crate) mod node_ports;
pub mod settings;
pub mod table_sizes;
pub mod value;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::ValueEnum;
use ipnet::IpNet;
use proxy_common::{family::Family, masquerade::PortRange};

use self::node_ports::NodePortAddresses;
use crate::{
    dataplane::{
        attach::Mode,
        load::{FixedSizes, Sizes},
    },
    model::{
        IpFamily, Node,
        address::{parse_cidr, prefix_of},
    },
    reconcile::Intervals,
    socket_lb::SocketConfig,
    source::Source,
    sys::conntrack::ConntrackConfig,
};

/// Everything `run` needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: NodeConfig,
    pub source: Source,
    pub bpf_root: PathBuf,
    pub sockets: SocketConfig,
    pub sizes: Sizes,
    /// The sizes that flags fix; tables of other sizes may be larger already, and grow.
    pub fixed_sizes: FixedSizes,
    /// Bytes that tables of Services may take when they grow.
    pub memory_for_services: u64,
    pub masquerade_ports: PortRange,
    pub attach: Mode,
    /// Settings for the flows of others.
    pub conntrack: ConntrackConfig,
    /// Where sysctls are.
    pub proc_sys: PathBuf,
    /// Key of the taint to take off the node once Services work here.
    pub remove_taint: Option<String>,
    pub servers: Servers,
    pub oom_score_adj: i32,
    pub intervals: Intervals,
    /// Where the last known state is kept, if it is.
    pub state_dir: Option<PathBuf>,
    /// A list that has lost most Services takes effect at once.
    pub allow_empty: bool,
    /// Where all this was read from, to be read again.
    pub files: Vec<PathBuf>,
}

/// The addresses that are listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Servers {
    /// None to serve no health checks.
    pub health: Option<SocketAddr>,
    /// None to serve no metrics.
    pub metrics: Option<SocketAddr>,
    /// Whether to end if one of them cannot be listened on, instead of trying again.
    pub hard_fail: bool,
}

/// The node's name, and the options for its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of this node's Node object.
    pub name: String,
    pub local_detector: LocalDetector,
    /// Masquerade all traffic to cluster IPs (S63).
    pub masquerade_all: bool,
    pub node_port_addresses: NodePortAddresses,
    pub feature_gates: FeatureGates,
}

/// An error determining this node's name.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the host name; --hostname-override gives this node's name")]
    HostName(#[source] io::Error),
    #[error("the host name is empty; --hostname-override gives this node's name")]
    NoName,
}

/// The name of this node: as given, else the host name; in lower case (S89).
pub fn node_name(
    given: Option<&str>,
    host_name: impl FnOnce() -> io::Result<String>,
) -> Result<String, ConfigError> {
    let normal = |name: &str| name.trim().to_lowercase();
    let given = given.map(normal).filter(|name| !name.is_empty());
    let name = match given {
        Some(name) => name,
        None => normal(&host_name().map_err(ConfigError::HostName)?),
    };
    if name.is_empty() {
        return Err(ConfigError::NoName);
    }
    Ok(name)
}

pub fn host_name() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/hostname")
}

/// The value of `--detect-local-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalMode {
    /// By the address: within the prefix of all pods
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// By the address: within the Node object's pod CIDR
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By the device it comes in by: the pods' bridge
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By the device it comes in by: what its name begins with
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// The criterion that tells traffic of pods from other traffic (S68).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    ClusterCidr(ClusterCidr),
    NodeCidr,
    BridgeInterface(String),
    InterfaceNamePrefix(String),
}

impl LocalDetector {
    /// The prefix that tells, in one family, if an address tells.
    pub fn prefix<F: Family>(&self, node: Option<&Node>) -> Option<(F::Ip, u8)> {
        match self {
            Self::ClusterCidr(cidrs) => cidrs.get::<F>(),
            Self::NodeCidr => node?.pod_cidr::<F>(),
            Self::BridgeInterface(_) | Self::InterfaceNamePrefix(_) => None,
        }
    }

    /// Ranges that pods have addresses of, as far as they are known.
    pub fn pod_ranges(&self, node: Option<&Node>) -> Vec<IpNet> {
        let cluster = match self {
            Self::ClusterCidr(cidrs) => cidrs.0.as_slice(),
            Self::NodeCidr | Self::BridgeInterface(_) | Self::InterfaceNamePrefix(_) => &[],
        };
        let node = node.map_or(&[][..], |node| &node.pod_cidrs);
        [cluster, node].concat()
    }

    /// Returns why no client counts as a pod, where the Node object does not tell.
    pub fn missing_pod_cidrs(&self, node: Option<&Node>) -> Option<&'static str> {
        match (self, node) {
            (Self::NodeCidr, None) => Some("there is no Node object of this node's name"),
            (Self::NodeCidr, Some(node)) if node.pod_cidrs.is_empty() => {
                Some("the Node object has no podCIDRs")
            }
            _ => None,
        }
    }

    /// Returns whether a device tells, and then whether this one means pods.
    pub fn is_pod_device(&self, name: &str) -> Option<bool> {
        match self {
            Self::ClusterCidr(_) | Self::NodeCidr => None,
            Self::BridgeInterface(bridge) => Some(name == bridge),
            Self::InterfaceNamePrefix(prefix) => Some(name.starts_with(prefix)),
        }
    }
}

/// The value of `--feature-gates`: kube-proxy's that mean something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    /// `AllowServiceExternalIPs`: spec.externalIPs are served (S7).
    pub service_external_ips: bool,
}

/// An error in a list of feature gates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    #[error("expected NAME=true or NAME=false, not {0:?}")]
    Syntax(String),
}

impl Default for FeatureGates {
    fn default() -> Self {
        Self {
            service_external_ips: true,
        }
    }
}

impl FeatureGates {
    /// The gate that means something here.
    pub const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
}

impl FromStr for FeatureGates {
    type Err = GateError;

    fn from_str(raw: &str) -> Result<Self, GateError> {
        let mut gates = Self::default();
        for gate in raw
            .split(',')
            .map(str::trim)
            .filter(|gate| !gate.is_empty())
        {
            let syntax = || GateError::Syntax(gate.to_owned());
            let (name, value) = gate.split_once('=').ok_or_else(syntax)?;
            let value = value.trim().parse().map_err(|_| syntax())?;
            // Kubernetes' components know each other's, and so does a kube-proxy's file (S104).
            if name.trim() == Self::EXTERNAL_IPS {
                gates.service_external_ips = value;
            }
        }
        Ok(gates)
    }
}

/// The prefixes of all pods, at most one of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterCidr(Vec<IpNet>);

impl ClusterCidr {
    /// The prefixes, as kube-proxy names them.
    pub fn words(&self) -> Vec<String> {
        self.0.iter().map(IpNet::to_string).collect()
    }

    /// The prefix of one family.
    pub fn get<F: Family>(&self) -> Option<(F::Ip, u8)> {
        self.0.iter().copied().find_map(prefix_of::<F>)
    }

    /// Returns whether an address is in one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|cidr| cidr.contains(&ip))
    }
}

/// An error in a cluster CIDR (S101).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("{0:?} is not a CIDR")]
    Syntax(String),
    #[error("more than two CIDRs")]
    TooMany,
    #[error("both CIDRs are {0}")]
    SameFamily(IpFamily),
}

impl FromStr for ClusterCidr {
    type Err = CidrError;

    fn from_str(raw: &str) -> Result<Self, CidrError> {
        if raw.trim().is_empty() {
            return Ok(Self::default());
        }
        let parse =
            |raw: &str| parse_cidr(raw.trim()).ok_or_else(|| CidrError::Syntax(raw.to_owned()));
        let cidrs = raw.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
        let families: Vec<_> = cidrs.iter().map(|cidr| IpFamily::of(cidr.addr())).collect();
        match families[..] {
            [_] => Ok(Self(cidrs)),
            [first, second] if first != second => Ok(Self(cidrs)),
            [first, _] => Err(CidrError::SameFamily(first)),
            _ => Err(CidrError::TooMany),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proxy_common::family::{V4, V6};
    use rstest::rstest;

    use super::*;
    use crate::model::ObjectKey;

    /// The name is the given one or the host's, trimmed and in lower case (S89).
    #[rstest]
    #[case::given(Some(" Node-A "), "node-a")]
    #[case::host_name(None, "some-host")]
    #[case::blank_is_not_given(Some(" "), "some-host")]
    fn names_the_node(#[case] given: Option<&str>, #[case] expected: &str) {
        let name = node_name(given, || Ok("Some-Host\n".to_owned()));
        assert_eq!(name.expect("a name"), expected);
    }

    #[test]
    fn a_node_has_a_name() {
        let blank = node_name(None, || Ok("\n".to_owned()));
        assert!(matches!(blank, Err(ConfigError::NoName)));
        let failed = node_name(None, || Err(io::ErrorKind::NotFound.into()));
        assert!(matches!(failed, Err(ConfigError::HostName(_))));
    }

    /// A cluster CIDR is one prefix, or one of each family (S101).
    #[rstest]
    #[case("", None, None)]
    #[case("10.1.2.3/16", Some(([10, 1, 0, 0], 16)), None)]
    #[case("fd00::/48", None, Some(("fd00::", 48)))]
    #[case("fd00::/48, 10.1.0.0/16", Some(([10, 1, 0, 0], 16)), Some(("fd00::", 48)))]
    fn reads_cluster_cidrs(
        #[case] raw: &str,
        #[case] v4: Option<([u8; 4], u8)>,
        #[case] v6: Option<(&str, u8)>,
    ) {
        let detector = LocalDetector::ClusterCidr(raw.parse().expect("valid"));
        let v4 = v4.map(|(ip, length)| (ip.into(), length));
        let v6 = v6.map(|(ip, length)| (ip.parse::<Ipv6Addr>().expect("IPv6"), length));
        assert_eq!(detector.prefix::<V4>(None), v4);
        assert_eq!(detector.prefix::<V6>(None), v6);
        assert_eq!(detector.is_pod_device("eth0"), None);
    }

    #[rstest]
    #[case("10.0.0.0", CidrError::Syntax("10.0.0.0".to_owned()))]
    #[case("10.0.0.0/8,", CidrError::Syntax(String::new()))]
    #[case("10.0.0.0/8,11.0.0.0/8", CidrError::SameFamily(IpFamily::V4))]
    #[case("fd00::/8,fd01::/16,10.0.0.0/8", CidrError::TooMany)]
    fn refuses_other_lists(#[case] raw: &str, #[case] error: CidrError) {
        assert_eq!(raw.parse::<ClusterCidr>(), Err(error));
    }

    fn node_with(pod_cidrs: &[&str]) -> Node {
        let pod_cidrs = pod_cidrs.iter().map(|cidr| cidr.parse().expect("CIDR"));
        Node {
            key: ObjectKey::new("", "node-0"),
            zone: None,
            pod_cidrs: pod_cidrs.collect(),
            addresses: Vec::new(),
            leaving: None,
        }
    }

    /// A node without pod CIDRs is named (S68). One family is enough: a cluster may have no
    /// other.
    #[rstest]
    #[case::of_ipv4(Some(&["10.1.0.0/24"][..]), false)]
    #[case::of_ipv6(Some(&["fd00:1::/64"][..]), false)]
    #[case::without(Some(&[][..]), true)]
    #[case::no_object(None, true)]
    fn a_node_without_pod_cidrs_is_named(#[case] cidrs: Option<&[&str]>, #[case] expected: bool) {
        let node = cidrs.map(node_with);
        assert_eq!(
            LocalDetector::NodeCidr
                .missing_pod_cidrs(node.as_ref())
                .is_some(),
            expected
        );
        let others = LocalDetector::BridgeInterface("cni0".to_owned());
        assert_eq!(others.missing_pod_cidrs(node.as_ref()), None);
    }

    /// Local detection is by CIDR, bridge or device name (S68).
    #[test]
    fn node_cidr_is_the_nodes_own() {
        let node = node_with(&["10.1.0.0/24", "10.2.0.0/24"]);
        let detector = LocalDetector::NodeCidr;
        assert_eq!(
            detector.prefix::<V4>(Some(&node)),
            Some(([10, 1, 0, 0].into(), 24))
        );
        assert_eq!(detector.prefix::<V6>(Some(&node)), None);
        assert_eq!(detector.prefix::<V4>(None), None);
    }

    /// Local detection is by CIDR, bridge or device name (S68).
    #[rstest]
    #[case(LocalDetector::BridgeInterface("cni0".to_owned()), "cni0", true)]
    #[case(LocalDetector::BridgeInterface("cni0".to_owned()), "cni01", false)]
    #[case(LocalDetector::InterfaceNamePrefix("veth".to_owned()), "veth12ab", true)]
    #[case(LocalDetector::InterfaceNamePrefix("veth".to_owned()), "eth0", false)]
    fn devices_tell(#[case] detector: LocalDetector, #[case] device: &str, #[case] pods: bool) {
        assert_eq!(detector.is_pod_device(device), Some(pods));
        assert_eq!(detector.prefix::<V4>(None), None);
    }
}
