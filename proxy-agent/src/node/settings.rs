//! `CONFIG`: what the programs are told of the node and its flows.

mod desired;

use std::mem::offset_of;

use ipnet::IpNet;
use proxy_common::{
    config::{Config as Settings, Prefix},
    family::{V4, V6},
    net::{AddrV4, AddrV6},
};
use tracing::warn;

pub use self::desired::{describe_node, set_flag, timeouts};
use super::{NODE_PATIENCE, NodeController, service_cidrs::ranges};
use crate::{
    dataplane::{mapped::Mapped, sweep::Swept},
    model::Node,
};

impl NodeController {
    pub(super) fn settings(&self) -> Option<Settings> {
        self.loaded.config.get(0)
    }

    pub(super) fn set_settings(&mut self, settings: Settings) {
        if self.settings() != Some(settings) {
            // One row, which is there.
            let _ = self.loaded.config.set(0, settings);
        }
    }

    pub(super) fn write_settings(&mut self, swept: [Swept; 2]) {
        let Some(mut settings) = self.settings() else {
            return;
        };
        settings.timeouts = timeouts();
        let pressed = [Settings::PRESSED_V4, Settings::PRESSED_V6];
        for (flag, swept) in pressed.into_iter().zip(swept) {
            let before = settings.flags & flag != 0;
            let pressed = self.loaded.is_pressed(swept, before);
            set_flag(&mut settings.flags, flag, pressed);
        }
        self.set_settings(settings);
    }

    /// The flags of the families whose tables are nearly full.
    pub(super) fn pressed(&self) -> u32 {
        let flags = self.settings().map_or(0, |settings| settings.flags);
        flags & (Settings::PRESSED_V4 | Settings::PRESSED_V6)
    }

    /// Tells the programs which clients are pods (S68).
    pub(super) fn write_detector(&mut self, node: Option<&Node>) {
        let Some(mut settings) = self.settings() else {
            return;
        };
        describe_node(&mut settings, &self.config, node);
        self.set_settings(settings);
    }

    /// Tells the programs whether some bridge has the MAC address of one of its
    /// ports (E2). Elsewhere they need not look.
    pub(super) fn write_shared_mac(&mut self, shared: bool) {
        let Some(mut settings) = self.settings() else {
            return;
        };
        set_flag(&mut settings.flags, Settings::PORT_HAS_BRIDGE_MAC, shared);
        self.set_settings(settings);
    }

    /// Says so where nothing tells which clients are pods (S68).
    pub(super) fn tell_of_pods(&mut self) {
        if self.started.elapsed() < NODE_PATIENCE {
            return;
        }
        let gap = self.config.local_detector.gap(self.node.borrow().as_ref());
        if let Some(gap) = gap.filter(|_| gap != self.gap) {
            warn!(
                node = self.config.name,
                "no client counts as a pod, so externalTrafficPolicy Local takes pods for \
                 clients outside: {gap}; see --hostname-override and --detect-local-mode"
            );
        }
        self.gap = gap;
    }

    /// Tells the programs where cluster IPs come from (S47). Until that is
    /// known, an earlier agent's word holds.
    pub(super) fn write_service_ranges(&mut self) {
        let Some(cidrs) = self.service_ranges.borrow().clone() else {
            return;
        };
        let Some(settings) = self.settings() else {
            return;
        };
        let (v4, v6) = (ranges::<V4>(&cidrs), ranges::<V6>(&cidrs));
        let config = &mut self.loaded.config;
        for (index, prefix) in v4.prefixes.into_iter().enumerate() {
            if settings.service_ranges_v4[index] != prefix {
                store_v4(config, index, prefix);
            }
        }
        for (index, prefix) in v6.prefixes.iter().enumerate() {
            if settings.service_ranges_v6[index] != *prefix {
                store_v6(config, index, prefix);
            }
        }
        let left_out: Vec<IpNet> = v4.left_out.into_iter().chain(v6.left_out).collect();
        if !left_out.is_empty() && left_out != self.left_out {
            warn!(
                "more than {} service ranges of one family: unused cluster IPs of {left_out:?} \
                 are not dropped",
                Settings::SERVICE_RANGES
            );
        }
        self.left_out = left_out;
    }
}

/// Overwrites a prefix by one store.
fn store_v4(config: &mut Mapped<Settings>, index: usize, prefix: Prefix<AddrV4>) {
    let at = offset_of!(Settings, service_ranges_v4) + index * size_of::<Prefix<AddrV4>>();
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&prefix.addr.octets);
    bytes[4..].copy_from_slice(&prefix.mask.octets);
    // One row, which is there.
    let _ = config.store(0, at, u64::from_ne_bytes(bytes));
}

/// Overwrites a prefix that programs may be reading. Meanwhile it contains
/// nobody's address.
fn store_v6(config: &mut Mapped<Settings>, index: usize, prefix: &Prefix<AddrV6>) {
    let at = offset_of!(Settings, service_ranges_v6) + index * size_of::<Prefix<AddrV6>>();
    let halves = |addr: AddrV6| {
        let [high, low] = [0, 8].map(|start| {
            let mut half = [0; 8];
            half.copy_from_slice(&addr.octets[start..start + 8]);
            u64::from_ne_bytes(half)
        });
        (high, low)
    };
    let (addr_high, addr_low) = halves(prefix.addr);
    let (mask_high, mask_low) = halves(prefix.mask);
    let addr = at + offset_of!(Prefix<AddrV6>, addr);
    let mask = at + offset_of!(Prefix<AddrV6>, mask);
    let stores = [
        (addr, u64::MAX),
        (mask + 8, mask_low),
        (mask, mask_high),
        (addr + 8, addr_low),
        (addr, addr_high),
    ];
    for (offset, value) in stores {
        // One row, which is there.
        let _ = config.store(0, offset, value);
    }
}
