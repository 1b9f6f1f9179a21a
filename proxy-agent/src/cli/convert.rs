//! From arguments to settings.

use super::{
    Attach, ConntrackArgs, KubeProxyArgs, LogArgs, NodeArgs, PathArgs, PinArgs, RunArgs, TableArgs,
};
use crate::{
    config::{
        self, Config, ConfigError, DetectLocalMode, LocalDetector, NodeConfig, Servers, table_sizes,
    },
    dataplane::{
        attach::Mode,
        load::{FixedSizes, Sizes},
    },
    reconcile::Intervals,
    socket_lb::SocketConfig,
    source::{Access, Source},
    sys::conntrack::ConntrackConfig,
    telemetry::LogConfig,
};

impl TryFrom<RunArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: RunArgs) -> Result<Self, ConfigError> {
        // Every field by name: a new flag cannot be forgotten here.
        let RunArgs {
            config: files,
            one_shot: _,
            kubeconfig,
            master,
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
            kube_proxy:
                KubeProxyArgs {
                    // Its family is that of the addresses below.
                    bind_address: _,
                    healthz_bind_address,
                    bind_address_hard_fail,
                    oom_score_adj,
                    kube_api_qps,
                    kube_api_burst,
                    conntrack,
                },
            masquerade_ports,
            attach,
            sockets,
            sockets_exclude_cgroup,
            metrics_bind_address,
            remove_taint,
            min_sync_period,
            audit_period,
            state_dir,
            allow_empty,
        } = args;
        Ok(Self {
            node: node.try_into()?,
            source: match manifests {
                Some(directory) => Source::Manifests { directory },
                None => Source::Kubernetes(Access {
                    kubeconfig,
                    kubeconfig_may_miss: false,
                    servers: master,
                    qps: kube_api_qps,
                    burst: kube_api_burst,
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
            oom_score_adj,
            proc_sys: conntrack.proc_sys.clone(),
            conntrack: conntrack.into(),
            files,
            remove_taint: remove_taint.filter(|key| !key.is_empty()),
            servers: Servers {
                health: healthz_bind_address.0,
                metrics: metrics_bind_address.0,
                hard_fail: bind_address_hard_fail,
            },
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
            iptables_localhost_nodeports,
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
            node_port_addresses: if iptables_localhost_nodeports {
                nodeport_addresses
            } else {
                nodeport_addresses.without_loopback()
            },
            feature_gates,
        })
    }
}

impl From<ConntrackArgs> for ConntrackConfig {
    fn from(args: ConntrackArgs) -> Self {
        let ConntrackArgs {
            conntrack_max_per_core,
            conntrack_min,
            conntrack_tcp_timeout_established,
            conntrack_tcp_timeout_close_wait,
            conntrack_tcp_be_liberal,
            conntrack_udp_timeout,
            conntrack_udp_timeout_stream,
            proc_sys: _,
        } = args;
        Self {
            max_per_core: conntrack_max_per_core,
            min: conntrack_min,
            tcp_established: conntrack_tcp_timeout_established,
            tcp_close_wait: conntrack_tcp_timeout_close_wait,
            tcp_be_liberal: conntrack_tcp_be_liberal,
            udp: conntrack_udp_timeout,
            udp_stream: conntrack_udp_timeout_stream,
        }
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
