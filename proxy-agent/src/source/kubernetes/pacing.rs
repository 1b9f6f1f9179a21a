//! When the API server is asked again after something went wrong.
//!
//! All agents of a cluster notice a restart of the API server in the same instant.
//! What each of them waits is therefore drawn by chance, and grows while it does not
//! get better; a list, the dearest request there is, waits the longer the more
//! objects it has.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use crate::retry::Backoff;

/// The delays of requests that failed, before chance changes them.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(30);
/// The longest delay for a kind that the API server does not have. It may, once it is
/// a newer one.
const LAST_ABSENT: Duration = Duration::from_mins(10);
/// How much longer the time grows, for each known object, within which a list begins
/// that all agents need at the same time …
const SPREAD_PER_OBJECT: Duration = Duration::from_millis(2);
/// … from this on, up to that.
const LEAST_SPREAD: Duration = Duration::from_secs(1);
const LARGEST_SPREAD: Duration = Duration::from_mins(1);

/// The pace of one watch.
#[derive(Debug)]
pub(super) struct Pacing {
    backoff: Backoff,
    absent: Backoff,
    relist: Backoff,
    chance: Chance,
}

impl Pacing {
    pub(super) fn new(chance: Chance) -> Self {
        Self {
            backoff: Backoff::doubling(FIRST, LAST),
            absent: Backoff::doubling(FIRST, LAST_ABSENT),
            relist: Backoff::doubling(FIRST, LAST),
            chance,
        }
    }

    /// Returns the delay after a failure: each longer than the one before, up to half
    /// a minute, and half as much more or less by chance.
    pub(super) fn after_failure(&mut self) -> Duration {
        let delay = self.backoff.step();
        self.jitter(delay)
    }

    /// Returns the delay after the API server said that it has no such kind.
    pub(super) fn after_absence(&mut self) -> Duration {
        let delay = self.absent.step();
        self.jitter(delay)
    }

    /// Returns the delay of a list that every agent needs now, because the API server
    /// has forgotten what they know.
    pub(super) fn before_relist(&mut self, known: usize) -> Duration {
        let spread = SPREAD_PER_OBJECT * u32::try_from(known).unwrap_or(u32::MAX).min(1 << 20);
        let spread = spread.clamp(LEAST_SPREAD, LARGEST_SPREAD);
        let delay = self.relist.step();
        self.jitter(delay).max(self.chance.part_of(spread))
    }

    /// Returns how long a watch is to last. Not all are begun anew at the same time.
    pub(super) fn watch_seconds(&mut self, from: u32, to: u32) -> u32 {
        let span = Duration::from_secs((to - from).into());
        from + u32::try_from(self.chance.part_of(span).as_secs()).unwrap_or(0)
    }

    /// What was asked for came, and lasts.
    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        self.absent.reset();
        self.relist.reset();
    }

    fn jitter(&mut self, delay: Duration) -> Duration {
        delay / 2 + self.chance.part_of(delay)
    }
}

/// Numbers by chance. Those of one seed are the same each time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chance(u64);

impl Default for Chance {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl Chance {
    #[cfg(test)]
    pub(super) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns any duration up to the given one, each as likely as the others.
    pub(super) fn part_of(&mut self, whole: Duration) -> Duration {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap_or(0);
        whole.mul_f64(f64::from(part) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_differ_between_agents() {
        let mut first = Vec::new();
        for seed in 0..100 {
            let mut pacing = Pacing::new(Chance::seeded(seed));
            for factor in [1, 2, 4, 8, 16, 30, 30] {
                let (delay, middle) = (pacing.after_failure(), FIRST * factor);
                assert!(delay >= middle / 2 && delay <= middle * 3 / 2, "{delay:?}");
                if factor == 1 {
                    first.push(delay);
                }
            }
            pacing.succeeded();
            assert!(pacing.after_failure() <= FIRST * 3 / 2);
        }
        let (least, most) = (first.iter().min(), first.iter().max());
        assert!(least < Some(&Duration::from_millis(600)), "{least:?}");
        assert!(most > Some(&Duration::from_millis(1400)), "{most:?}");
    }

    #[test]
    fn large_lists_wait_longer() {
        let mean = |known| {
            let delays =
                (0..200).map(|seed| Pacing::new(Chance::seeded(seed)).before_relist(known));
            delays.sum::<Duration>() / 200
        };
        assert!(mean(1) < Duration::from_secs(2));
        let large = mean(10_000).as_secs();
        assert!((8..13).contains(&large), "{large}");
        assert!(mean(usize::MAX).as_secs() > 25);
    }

    #[test]
    fn a_missing_kind_is_asked_for_rarely() {
        let mut pacing = Pacing::new(Chance::seeded(1));
        let delays: Vec<_> = (0..12).map(|_| pacing.after_absence()).collect();
        assert!(delays[0] < Duration::from_secs(2));
        assert!(delays[11] >= Duration::from_mins(5), "{delays:?}");
    }
}
