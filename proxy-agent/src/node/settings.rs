//! `CONFIG`: the node's properties and the timeouts of flows, for the programs.

mod desired;

use proxy_common::config::Config;
use tokio::time::Instant;
use tracing::warn;

pub use self::desired::{describe_node, set_flag, timeouts};
use super::NODE_PATIENCE;
use crate::{config::NodeConfig, dataplane::mapped::Mapped, model::Node, notice::Notice};

/// The one row of `CONFIG`.
pub(super) trait ConfigRow {
    fn read(&self) -> Option<Config>;
    fn write(&mut self, config: Config);
    /// Overwrites eight bytes at once.
    fn store(&mut self, offset: usize, value: u64);
}

impl ConfigRow for Mapped<Config> {
    fn read(&self) -> Option<Config> {
        self.get(0)
    }

    fn write(&mut self, config: Config) {
        // One row, which is there.
        let _ = self.set(0, config);
    }

    fn store(&mut self, offset: usize, value: u64) {
        // One row, which is there.
        let _ = Self::store(self, 0, offset, value);
    }
}

/// Changes the row, if that makes a difference.
pub(super) fn update(row: &mut impl ConfigRow, change: impl FnOnce(&mut Config)) {
    let Some(before) = row.read() else {
        return;
    };
    let mut config = before;
    change(&mut config);
    if config != before {
        row.write(config);
    }
}

/// Writes the node's properties for the programs, and logs if no client counts as a pod.
pub(super) struct SettingsController {
    config: NodeConfig,
    /// The reason why no client counts as a pod, if none does.
    no_pods: Notice<Option<&'static str>>,
    started: Instant,
}

impl SettingsController {
    pub(super) fn new(config: NodeConfig) -> Self {
        Self {
            config,
            no_pods: Notice::default(),
            started: Instant::now(),
        }
    }

    pub(super) fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Tells the programs which clients are pods (S68).
    pub(super) fn set_detector(&self, row: &mut impl ConfigRow, node: Option<&Node>) {
        update(row, |config| describe_node(config, &self.config, node));
    }

    /// Logs if nothing tells which clients are pods (S68).
    pub(super) fn tell_of_pods(&mut self, node: Option<&Node>) {
        if self.started.elapsed() < NODE_PATIENCE {
            return;
        }
        let reason = self.config.local_detector.missing_pod_cidrs(node);
        if self.no_pods.is_news(reason)
            && let Some(reason) = reason
        {
            warn!(
                node = self.config.name,
                "no client counts as a pod, so externalTrafficPolicy Local takes pods for \
                 clients outside: {reason}; see --hostname-override and --detect-local-mode"
            );
        }
    }
}

/// Tells the programs whether some bridge has the MAC address of one of its
/// ports (E2). If not, they do not look for that case.
pub(super) fn set_shared_mac(row: &mut impl ConfigRow, shared: bool) {
    update(row, |config| {
        set_flag(&mut config.flags, Config::PORT_HAS_BRIDGE_MAC, shared);
    });
}

/// Notes for `get` whether the state on disk is served.
pub(super) fn set_stale(row: &mut impl ConfigRow, stale: bool) {
    update(row, |config| {
        set_flag(&mut config.flags, Config::STALE, stale);
    });
}

/// Returns whether the programs were in another network namespace.
pub(super) fn is_of_other_namespace(row: &impl ConfigRow, cookie: u64) -> bool {
    let config = row.read();
    config.is_some_and(|config| config.netns_cookie != cookie)
}

/// Tells the programs in which network namespace they are.
pub(super) fn set_namespace(row: &mut impl ConfigRow, cookie: u64) {
    update(row, |config| config.netns_cookie = cookie);
}
