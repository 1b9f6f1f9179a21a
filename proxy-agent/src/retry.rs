//! The time at which failed work is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// Delays between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    next: Duration,
    last: Duration,
}

impl Backoff {
    /// The same delay each time.
    pub const fn fixed(delay: Duration) -> Self {
        Self::doubling(delay, delay)
    }

    /// Delays that double from `first` up to `last`.
    pub const fn doubling(first: Duration, last: Duration) -> Self {
        Self {
            first,
            next: first,
            last,
        }
    }

    /// Returns the delay before the next attempt.
    pub fn step(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.last);
        delay
    }

    /// Begins with the first delay again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// The next attempt at work that failed.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    at: Option<Instant>,
    backoff: Backoff,
}

impl Retry {
    pub const fn new(backoff: Backoff) -> Self {
        Self { at: None, backoff }
    }

    /// The time of the next attempt, unless nothing has failed.
    pub fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Schedules another attempt.
    pub fn failed(&mut self) {
        self.at = Some(Instant::now() + self.backoff.step());
    }

    /// Cancels the next attempt: the work is done.
    pub fn succeeded(&mut self) {
        self.at = None;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn delays_grow_until_the_work_is_done() {
        let mut retry = Retry::new(Backoff::doubling(SECOND, 3 * SECOND));
        assert_eq!(retry.due(), None);
        let mut delays = Vec::new();
        for _ in 0..4 {
            retry.failed();
            delays.push(retry.due().expect("a failure") - Instant::now());
        }
        assert_eq!(delays, [1, 2, 3, 3].map(|factor| factor * SECOND));
        retry.succeeded();
        assert_eq!(retry.due(), None);
        retry.failed();
        assert_eq!(retry.due(), Some(Instant::now() + SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_delay_stays() {
        let mut retry = Retry::new(Backoff::fixed(SECOND));
        for _ in 0..2 {
            retry.failed();
            assert_eq!(retry.due(), Some(Instant::now() + SECOND));
        }
    }
}
