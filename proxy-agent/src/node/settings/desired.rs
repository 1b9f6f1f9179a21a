//! The desired contents of `CONFIG`: the node's properties (S63, S68) and the timeouts of
//! idle flows (S82).

use proxy_common::{
    config::{Config as Settings, Prefix, Timeouts},
    family::{Family, V4, V6},
    flow::ticks_from_seconds,
};

use crate::{config::NodeConfig, model::Node};

/// Tells which clients are pods, and whether those are masqueraded, too.
pub fn describe_node(settings: &mut Settings, config: &NodeConfig, node: Option<&Node>) {
    let detector = &config.local_detector;
    let v4 = detector.prefix::<V4>(node);
    let v6 = detector.prefix::<V6>(node);
    let flags = &mut settings.flags;
    set_flag(flags, Settings::MASQUERADE_ALL, config.masquerade_all);
    set_flag(flags, Settings::DETECT_PREFIX_V4, v4.is_some());
    set_flag(flags, Settings::DETECT_PREFIX_V6, v6.is_some());
    let by_device = detector.is_pod_device("").is_some();
    set_flag(flags, Settings::DETECT_DEVICE, by_device);
    settings.pods_v4 = v4.map_or_else(Prefix::default, |(ip, length)| Prefix {
        addr: V4::addr(ip),
        mask: V4::addr(
            u32::MAX
                .checked_shl(32 - u32::from(length))
                .unwrap_or(0)
                .into(),
        ),
    });
    settings.pods_v6 = v6.map_or_else(Prefix::default, |(ip, length)| Prefix {
        addr: V6::addr(ip),
        mask: V6::addr(
            u128::MAX
                .checked_shl(128 - u32::from(length))
                .unwrap_or(0)
                .into(),
        ),
    });
}

/// Idle times of flows. TCP's are those that kube-proxy sets for conntrack
/// (S82) or conntrack's own; UDP's are conntrack's.
pub fn timeouts() -> Timeouts {
    Timeouts {
        tcp_established: ticks_from_seconds(24 * 3600),
        tcp_opening: ticks_from_seconds(60),
        tcp_closing: ticks_from_seconds(60),
        other_replied: ticks_from_seconds(120),
        other_unreplied: ticks_from_seconds(30),
        pressed: ticks_from_seconds(2),
    }
}

/// Sets or clears a flag.
pub fn set_flag(flags: &mut u32, flag: u32, on: bool) {
    if on {
        *flags |= flag;
    } else {
        *flags &= !flag;
    }
}

#[cfg(test)]
mod tests {
    use ipnet::{Ipv4Net, Ipv6Net};
    use rstest::rstest;

    use super::*;
    use crate::{
        config::{FeatureGates, LocalDetector},
        model::ObjectKey,
    };

    /// Returns the settings as text: the criteria that tell pods from other clients, and the
    /// prefixes of pods.
    fn told(detector: LocalDetector, pod_cidrs: &str) -> String {
        let config = NodeConfig {
            name: "node".to_owned(),
            local_detector: detector,
            masquerade_all: false,
            node_port_addresses: "".parse().expect("all"),
            feature_gates: FeatureGates::default(),
        };
        let cidrs = pod_cidrs.split_whitespace();
        let node = Node {
            key: ObjectKey::new("", "node"),
            zone: None,
            pod_cidrs: cidrs.map(|cidr| cidr.parse().expect("a CIDR")).collect(),
            addresses: Vec::new(),
            leaving: None,
        };
        let mut settings = Settings {
            flags: Settings::MASQUERADE_ALL | Settings::SOCKETS_HOST,
            ..Settings::default()
        };
        describe_node(&mut settings, &config, Some(&node));
        assert_eq!(
            settings.flags & Settings::MASQUERADE_ALL,
            0,
            "not asked for"
        );
        assert_ne!(settings.flags & Settings::SOCKETS_HOST, 0, "not the node's");
        let (v4, v6) = (settings.pods_v4, settings.pods_v6);
        let v4 = Ipv4Net::with_netmask(V4::ip(v4.addr), V4::ip(v4.mask));
        let v6 = Ipv6Net::with_netmask(V6::ip(v6.addr), V6::ip(v6.mask));
        let is_set = |flag| settings.flags & flag != 0;
        let mut told = Vec::new();
        told.extend(is_set(Settings::DETECT_PREFIX_V4).then(|| v4.expect("a mask").to_string()));
        told.extend(is_set(Settings::DETECT_PREFIX_V6).then(|| v6.expect("a mask").to_string()));
        told.extend(is_set(Settings::DETECT_DEVICE).then(|| "device".to_owned()));
        told.join(" ")
    }

    /// Pods are told from other clients by the node's pod CIDRs (S68).
    #[rstest]
    #[case::of_both_families("10.1.0.0/24 fd00:1::/64", "10.1.0.0/24 fd00:1::/64")]
    #[case::of_ipv4("10.1.0.0/24", "10.1.0.0/24")]
    #[case::of_ipv6("fd00:1::/64", "fd00:1::/64")]
    #[case::whole_families("0.0.0.0/0 ::/0", "0.0.0.0/0 ::/0")]
    #[case::single_addresses("10.1.0.9/32 fd00:1::9/128", "10.1.0.9/32 fd00:1::9/128")]
    #[case::unknown("", "")]
    fn pods_are_told_by_the_nodes_prefixes(#[case] pod_cidrs: &str, #[case] expected: &str) {
        assert_eq!(told(LocalDetector::NodeCidr, pod_cidrs), expected);
    }

    #[test]
    fn devices_tell_instead_of_prefixes() {
        let cidrs = "10.1.0.0/24 fd00:1::/64";
        let bridge = LocalDetector::BridgeInterface("cni0".to_owned());
        assert_eq!(told(bridge, cidrs), "device");
        let prefix = LocalDetector::InterfaceNamePrefix("veth".to_owned());
        assert_eq!(told(prefix, cidrs), "device");
    }
}
