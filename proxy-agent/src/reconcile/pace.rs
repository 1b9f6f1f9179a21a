//! The time of the next sync: at once if idle, a gap after the last one, and later
//! and later while syncs fail (S86, S87).

use std::time::Duration;

use tokio::time::Instant;

use crate::retry::Backoff;

/// Delays between attempts at what fails, or does not fit into the tables.
pub(super) const BACKOFF: Backoff =
    Backoff::doubling(Duration::from_secs(1), Duration::from_secs(30));

/// Time of the next sync.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    gap: Duration,
    earliest: Instant,
    backoff: Backoff,
}

impl Pace {
    /// A pace with that least time between syncs; the first may start now.
    pub fn new(gap: Duration, now: Instant) -> Self {
        Self {
            gap,
            earliest: now,
            backoff: BACKOFF,
        }
    }

    /// The next sync may start from this time on.
    pub fn earliest(&self) -> Instant {
        self.earliest
    }

    /// A sync ended well.
    pub fn succeeded(&mut self, now: Instant) {
        self.earliest = now + self.gap;
        self.backoff.reset();
    }

    /// A sync failed. Returns the time until the next.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let delay = self.backoff.step().max(self.gap);
        self.earliest = now + delay;
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_follows_a_success_and_a_growing_delay_a_failure() {
        let now = Instant::now();
        let gap = Duration::from_millis(1500);
        let mut pace = Pace::new(gap, now);
        assert_eq!(pace.earliest(), now);
        pace.succeeded(now);
        assert_eq!(pace.earliest(), now + gap);

        let delays: Vec<_> = (0..7).map(|_| pace.failed(now).as_millis()).collect();
        assert_eq!(delays, [1500, 2000, 4000, 8000, 16000, 30000, 30000]);
        pace.succeeded(now);
        assert_eq!(pace.failed(now), gap);
    }
}
