//! What `CONFIG` tells the programs of the node (S63, S68).

use proxy_common::{
    config::{Config as Settings, Prefix},
    family::{Family, V4, V6},
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

/// Sets or clears a flag.
pub fn set_flag(flags: &mut u32, flag: u32, on: bool) {
    if on {
        *flags |= flag;
    } else {
        *flags &= !flag;
    }
}
