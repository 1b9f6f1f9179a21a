//! When to try again what failed, and what was said of it.

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::notice::Notice;

/// How long to wait after a failure to follow devices or addresses.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The state of following devices and addresses.
#[derive(Debug, Default)]
pub(super) struct Retry {
    at: Option<Instant>,
    failure: Notice<String>,
}

impl Retry {
    /// When to try again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }

    /// All went well.
    pub(super) fn succeeded(&mut self) {
        self.at = None;
        self.failure.clear();
    }

    /// Sees to it that what failed is tried again in a while; says so once.
    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        self.at = Some(Instant::now() + RETRY);
        let message = format!("{error:#}");
        if self.failure.is_news(message.clone()) {
            warn!("cannot follow the node's devices and addresses, trying again: {message}");
        }
    }
}
