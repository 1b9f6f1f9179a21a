//! From arguments to settings.

use super::{Attach, LogArgs, NodeArgs, PathArgs, PinArgs, RunArgs, TableArgs};
use crate::{
    config::{self, Config, ConfigError, DetectLocalMode, LocalDetector, NodeConfig, table_sizes},
    dataplane::{
        attach::Mode,
        load::{FixedSizes, Sizes},
    },
    reconcile::Intervals,
    socket_lb::SocketConfig,
    source::{
        Source,
        kubernetes::{ClientOptions, RateLimit},
    },
    telemetry::LogConfig,
};

impl TryFrom<RunArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: RunArgs) -> Result<Self, ConfigError> {
        // Every field by name: a new flag cannot be forgotten here.
        let RunArgs {
            kubeconfig,
            manifests,
            node,
            paths:
                PathArgs {
                    pins: PinArgs { bpf_root },
                    cgroup_root,
                },
            tables:
                TableArgs {
                    max_service_ports,
                    max_endpoints,
                    flow_table_size,
                    initial_service_ports,
                    initial_endpoints,
                },
            masquerade_ports,
            attach,
            sockets,
            sockets_exclude_cgroup,
            metrics_bind_address,
            min_sync_period,
            audit_period,
            state_dir,
            allow_empty,
        } = args;
        Ok(Self {
            node: node.try_into()?,
            source: match manifests {
                Some(directory) => Source::Manifests { directory },
                None => Source::Kubernetes(ClientOptions {
                    kubeconfig,
                    rate: RateLimit::default(),
                }),
            },
            bpf_root,
            sockets: SocketConfig {
                mode: sockets,
                cgroup_root,
                exceptions: sockets_exclude_cgroup,
            },
            sizes: Sizes {
                services: max_service_ports.unwrap_or(initial_service_ports),
                endpoints: max_endpoints.unwrap_or(initial_endpoints),
                flows: flow_table_size.unwrap_or_else(table_sizes::flows),
                ..Sizes::DEFAULT
            },
            fixed_sizes: FixedSizes {
                services: max_service_ports.is_some(),
                endpoints: max_endpoints.is_some(),
                flows: flow_table_size.is_some(),
            },
            memory_for_services: table_sizes::bytes_for_services(),
            masquerade_ports,
            attach: match attach {
                Attach::Auto => Mode::best(),
                Attach::Tcx => Mode::Tcx,
                Attach::Clsact => Mode::Clsact,
            },
            metrics: metrics_bind_address.0,
            intervals: Intervals {
                min_sync: min_sync_period,
                audit: audit_period,
            },
            state_dir: state_dir.0,
            allow_empty,
        })
    }
}

impl TryFrom<NodeArgs> for NodeConfig {
    type Error = ConfigError;

    fn try_from(args: NodeArgs) -> Result<Self, ConfigError> {
        let NodeArgs {
            hostname_override,
            cluster_cidr,
            detect_local_mode,
            pod_bridge_interface,
            pod_interface_name_prefix,
            masquerade_all,
            nodeport_addresses,
            feature_gates,
        } = args;
        Ok(Self {
            name: config::node_name(hostname_override.as_deref(), config::host_name)?,
            local_detector: match detect_local_mode {
                DetectLocalMode::ClusterCidr => LocalDetector::ClusterCidr(cluster_cidr),
                DetectLocalMode::NodeCidr => LocalDetector::NodeCidr,
                DetectLocalMode::BridgeInterface => {
                    LocalDetector::BridgeInterface(pod_bridge_interface.unwrap_or_default())
                }
                DetectLocalMode::InterfaceNamePrefix => LocalDetector::InterfaceNamePrefix(
                    pod_interface_name_prefix.unwrap_or_default(),
                ),
            },
            masquerade_all,
            node_port_addresses: nodeport_addresses,
            feature_gates,
        })
    }
}

impl From<LogArgs> for LogConfig {
    fn from(args: LogArgs) -> Self {
        let LogArgs {
            log_level,
            verbosity,
            log_format,
        } = args;
        Self {
            level: log_level,
            verbosity,
            format: log_format,
        }
    }
}
