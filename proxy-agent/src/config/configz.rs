//! The settings in use, as JSON: kube-proxy's under the name of its own configuration, and
//! ours under ours.

use std::{net::SocketAddr, time::Duration};

use clap::ValueEnum as _;
use proxy_common::masquerade::PortRange;
use serde_json::{Value, json};

use super::{Config, LocalDetector};
use crate::source::Source;

/// The object that `/configz` shows (S114).
pub fn configz(config: &Config) -> Value {
    json!({
        "kubeproxy.config.k8s.io": kube_proxys(config),
        "tandem": ours(config),
    })
}

/// The fields of kube-proxy's `KubeProxyConfiguration` that mean something here.
fn kube_proxys(config: &Config) -> Value {
    let node = &config.node;
    let (mode, cluster_cidr, bridge, prefix) = match &node.local_detector {
        LocalDetector::ClusterCidr(cidrs) => (
            "ClusterCIDR",
            cidrs.words().join(","),
            String::new(),
            String::new(),
        ),
        LocalDetector::NodeCidr => ("NodeCIDR", String::new(), String::new(), String::new()),
        LocalDetector::BridgeInterface(name) => (
            "BridgeInterface",
            String::new(),
            name.clone(),
            String::new(),
        ),
        LocalDetector::InterfaceNamePrefix(prefix) => (
            "InterfaceNamePrefix",
            String::new(),
            String::new(),
            prefix.clone(),
        ),
    };
    let kubeconfig = match &config.source {
        Source::Kubernetes(access) => access.kubeconfig.as_deref(),
        Source::Manifests { .. } => None,
    };
    let address = |address: Option<SocketAddr>| {
        address.map_or_else(String::new, |address| address.to_string())
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddressHardFail": config.servers.hard_fail,
        "clientConnection": {
            "kubeconfig": kubeconfig.map_or_else(String::new, |path| path.display().to_string()),
        },
        "clusterCIDR": cluster_cidr,
        "conntrack": {
            "maxPerCore": config.conntrack.max_per_core,
            "min": config.conntrack.min,
            "tcpBeLiberal": config.conntrack.tcp_be_liberal,
            "tcpCloseWaitTimeout": seconds(config.conntrack.tcp_close_wait),
            "tcpEstablishedTimeout": seconds(config.conntrack.tcp_established),
            "udpStreamTimeout": seconds(config.conntrack.udp_stream),
            "udpTimeout": seconds(config.conntrack.udp),
        },
        "detectLocal": {"bridgeInterface": bridge, "interfaceNamePrefix": prefix},
        "detectLocalMode": mode,
        "featureGates": {
            "AllowServiceExternalIPs": node.feature_gates.service_external_ips,
        },
        "healthzBindAddress": address(config.servers.health),
        "hostnameOverride": node.name,
        "iptables": {
            "masqueradeAll": node.masquerade_all,
            "minSyncPeriod": seconds(config.intervals.min_sync),
        },
        "metricsBindAddress": address(config.servers.metrics),
        "nodePortAddresses": node.node_port_addresses.words(),
    })
}

fn ours(config: &Config) -> Value {
    let manifests = match &config.source {
        Source::Kubernetes(_) => None,
        Source::Manifests { directory } => Some(directory.display().to_string()),
    };
    let exceptions: Vec<_> = config
        .sockets
        .exceptions
        .iter()
        .map(ToString::to_string)
        .collect();
    json!({
        "attach": config.attach.name(),
        "auditPeriod": seconds(config.intervals.audit),
        "bpfRoot": config.bpf_root.display().to_string(),
        "cgroupRoot": config.sockets.cgroup_root.as_ref().map(|path| path.display().to_string()),
        "flowTableSize": config.sizes.flows,
        "manifests": manifests,
        "masqueradePorts": masquerade_ports(config.masquerade_ports),
        "maxEndpoints": config.sizes.endpoints,
        "maxServicePorts": config.sizes.services,
        "removeTaint": config.remove_taint,
        "sockets": config.sockets.mode.to_possible_value().map(|mode| mode.get_name().to_owned()),
        "socketsExcludeCgroups": exceptions,
    })
}

/// A range as the flag has it.
fn masquerade_ports(range: PortRange) -> String {
    let bits = range.to_bits();
    format!("{}-{}", bits >> 16, bits & 0xffff)
}

/// A duration as kube-proxy's configuration has it.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};

    fn of(line: &str) -> Value {
        let words = line.split(' ').map(Into::into);
        let Ok(cli::Cli {
            command: Command::Run(args),
            ..
        }) = cli::parse(words)
        else {
            panic!("{line}");
        };
        configz(&args.try_into().expect("valid"))
    }

    /// kube-proxy's fields have its names, and values as its configuration has them.
    #[test]
    fn shows_what_runs() {
        let shown = of(
            "proxy-agent run --hostname-override node-1 --cluster-cidr 10.0.0.0/8,fd00::/8 \
             --nodeport-addresses primary,192.0.2.0/24 --min-sync-period 1500ms \
             --masquerade-all --sockets host --sockets-exclude-cgroup a/b* --bpf-root /b",
        );
        let theirs = &shown["kubeproxy.config.k8s.io"];
        for (path, expected) in [
            ("/kind", json!("KubeProxyConfiguration")),
            ("/apiVersion", json!("kubeproxy.config.k8s.io/v1alpha1")),
            ("/clusterCIDR", json!("10.0.0.0/8,fd00::/8")),
            ("/detectLocalMode", json!("ClusterCIDR")),
            ("/healthzBindAddress", json!("0.0.0.0:10256")),
            ("/metricsBindAddress", json!("127.0.0.1:10249")),
            ("/bindAddressHardFail", json!(false)),
            ("/hostnameOverride", json!("node-1")),
            ("/iptables/masqueradeAll", json!(true)),
            ("/iptables/minSyncPeriod", json!("1.5s")),
            ("/nodePortAddresses", json!(["primary", "192.0.2.0/24"])),
            ("/featureGates/AllowServiceExternalIPs", json!(true)),
        ] {
            assert_eq!(theirs.pointer(path), Some(&expected), "{path}");
        }
        let ours = &shown["tandem"];
        for (path, expected) in [
            ("/bpfRoot", json!("/b")),
            ("/masqueradePorts", json!("1024-65535")),
            ("/sockets", json!("host")),
            ("/socketsExcludeCgroups", json!(["a/b*"])),
            ("/auditPeriod", json!("60s")),
        ] {
            assert_eq!(ours.pointer(path), Some(&expected), "{path}");
        }
    }
}
