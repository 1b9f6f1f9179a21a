//! What `CONFIG` tells the programs of the node (S63, S68) and of idle flows
//! (S82).

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
