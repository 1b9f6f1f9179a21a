//! The free rows and runs of a table.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// Time before a row that was given up is used again. A program that read its
/// number just before finishes within microseconds, and user space has no
/// other sure way to wait for that (E31).
pub const GRACE: Duration = Duration::from_secs(1);

/// Free space of a table, as runs.
#[derive(Clone, Debug)]
pub struct Allocator {
    /// Start → length of each free run; neighbours are merged.
    free: BTreeMap<u32, u32>,
    /// The same runs by length, to find the smallest that is large enough.
    by_length: BTreeSet<(u32, u32)>,
    /// Runs given up by writes that may not be done yet.
    given_up: Vec<(u32, u32)>,
    /// Runs given up, in order of time.
    retired: VecDeque<(Instant, u32, u32)>,
}

impl Allocator {
    /// All of `capacity` entries free.
    pub fn new(capacity: u32) -> Self {
        let mut allocator = Self {
            free: BTreeMap::new(),
            by_length: BTreeSet::new(),
            given_up: Vec::new(),
            retired: VecDeque::new(),
        };
        if capacity > 0 {
            allocator.add(0, capacity);
        }
        allocator
    }

    /// Takes a run of `length`, which must not be zero, or `None` if no free
    /// one is long enough.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let &(found, start) = self.by_length.range((length, 0)..).next()?;
        self.drop_free(start, found);
        if found > length {
            self.add(start + length, found - length);
        }
        Some(start)
    }

    /// Takes exactly this run; `false` if any of it is not free.
    pub fn take_at(&mut self, start: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((&from, &found)) = self.free.range(..=start).next_back() else {
            return false;
        };
        let (Some(end), free_end) = (start.checked_add(length), from + found) else {
            return false;
        };
        if end > free_end {
            return false;
        }
        self.drop_free(from, found);
        if start > from {
            self.add(from, start - from);
        }
        if free_end > end {
            self.add(end, free_end - end);
        }
        true
    }

    /// Gives a run up. Its rest begins with the next [`Allocator::settle`], when
    /// the writes that give it up are done; it can be taken again after [`GRACE`].
    pub fn retire(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.given_up.push((start, length));
        }
    }

    /// Gives a run back that no program ever saw.
    pub fn put_back(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.insert_free(start, length);
        }
    }

    /// Frees runs that have rested long enough. The writes of earlier plans must have been done.
    pub fn settle(&mut self, now: Instant) {
        let given_up = self.given_up.drain(..);
        self.retired
            .extend(given_up.map(|(start, length)| (now, start, length)));
        while let Some(&(since, start, length)) = self.retired.front() {
            if now.duration_since(since) < GRACE {
                return;
            }
            self.retired.pop_front();
            self.insert_free(start, length);
        }
    }

    fn insert_free(&mut self, mut start: u32, mut length: u32) {
        if let Some((&before, &found)) = self.free.range(..start).next_back()
            && before + found == start
        {
            self.drop_free(before, found);
            start = before;
            length += found;
        }
        if let Some((&after, &found)) = self.free.range(start..).next()
            && start + length == after
        {
            self.drop_free(after, found);
            length += found;
        }
        self.add(start, length);
    }

    fn add(&mut self, start: u32, length: u32) {
        self.free.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn drop_free(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retired_runs_wait_for_the_grace_period() {
        let mut allocator = Allocator::new(4);
        let start = Instant::now();
        assert_eq!(allocator.take(4), Some(0));
        allocator.retire(0, 4);
        // The writes took their time.
        let done = start + GRACE * 2;
        allocator.settle(done);
        assert_eq!(allocator.take(1), None);
        allocator.settle(done + GRACE / 2);
        assert_eq!(allocator.take(1), None);
        allocator.settle(done + GRACE);
        assert_eq!(allocator.take(4), Some(0));
    }

    #[test]
    fn takes_the_smallest_run_that_is_large_enough() {
        let mut allocator = Allocator::new(10);
        assert!(allocator.take_at(2, 1));
        assert!(allocator.take_at(6, 1));
        // Free now: 0-1, 3-5, 7-9.
        assert_eq!(allocator.take(2), Some(0));
        assert_eq!(allocator.take(3), Some(3));
        assert!(!allocator.take_at(8, 3), "past the end");
        assert!(!allocator.take_at(6, 2), "partly taken");
    }

    proptest! {
        /// No entry is ever given out twice, and everything that was given
        /// back can be had in one piece again.
        #[test]
        fn never_overlaps_and_loses_nothing(steps in prop::collection::vec((1_u32..9, any::<bool>()), 1..80)) {
            const CAPACITY: u32 = 64;
            let mut allocator = Allocator::new(CAPACITY);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (length, give_back) in steps {
                if give_back && !held.is_empty() {
                    let (start, length) = held.swap_remove(length as usize % held.len());
                    allocator.put_back(start, length);
                } else if let Some(start) = allocator.take(length) {
                    prop_assert!(start + length <= CAPACITY);
                    for &(other, count) in &held {
                        prop_assert!(start + length <= other || other + count <= start);
                    }
                    held.push((start, length));
                }
            }
            for (start, length) in held {
                allocator.put_back(start, length);
            }
            prop_assert_eq!(allocator.take(CAPACITY), Some(0));
        }
    }
}
