//! Retries of a failed sync, and the log line about the failure.

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::notice::Notice;

/// Delay of the next attempt after a failure to follow devices or addresses.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The state of following devices and addresses.
#[derive(Debug, Default)]
pub(super) struct Retry {
    at: Option<Instant>,
    failure: Notice<String>,
}

impl Retry {
    /// The time of the next attempt.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Notes that all went well.
    pub(super) fn succeeded(&mut self) {
        self.at = None;
        self.failure.clear();
    }

    /// Schedules another attempt, and logs a failure once.
    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        self.at = Some(Instant::now() + RETRY);
        let message = format!("{error:#}");
        if self.failure.is_news(message.clone()) {
            warn!("cannot follow the node's devices and addresses, trying again: {message}");
        }
    }
}
