//! The state of following the node's devices and addresses.

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::{
    notice::Notice,
    retry::{Backoff, Retry},
};

/// Delay of the next attempt after a failure to follow devices or addresses.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Attempts at following devices and addresses.
#[derive(Debug)]
pub(super) struct Attempts {
    retry: Retry,
    failure: Notice<String>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            retry: Retry::new(Backoff::fixed(RETRY)),
            failure: Notice::default(),
        }
    }
}

impl Attempts {
    /// The time of the next attempt.
    pub(super) fn due(&self) -> Option<Instant> {
        self.retry.due()
    }

    /// Notes that all went well.
    pub(super) fn succeeded(&mut self) {
        self.retry.succeeded();
        self.failure.clear();
    }

    /// Schedules another attempt, and logs a failure once.
    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        self.retry.failed();
        let message = format!("{error:#}");
        if self.failure.is_news(message.clone()) {
            warn!("cannot follow the node's devices and addresses, trying again: {message}");
        }
    }
}
