//! Devices that `DEVICES` has no room for: thousands come at once, so they are
//! counted and not named.

/// Number of these devices, and the number that was last logged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WithoutRoom {
    count: usize,
    told: usize,
}

impl WithoutRoom {
    /// Sets the count to zero.
    pub(super) fn reset(&mut self) {
        self.count = 0;
    }

    /// Counts one more.
    pub(super) fn add(&mut self) {
        self.count += 1;
    }

    /// Returns the count, if it is time to log it: when there are any, and again when
    /// they have more than doubled.
    pub(super) fn news(&mut self) -> Option<usize> {
        let is_news = self.count > 2 * self.told;
        if is_news || self.count == 0 {
            self.told = self.count;
        }
        is_news.then_some(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_told_of_when_they_have_doubled() {
        let mut room = WithoutRoom::default();
        let told = [0, 3, 4, 6, 7, 9, 0, 1].map(|count| {
            room.reset();
            (0..count).for_each(|_| room.add());
            room.news()
        });
        let expected = [None, Some(3), None, None, Some(7), None, None, Some(1)];
        assert_eq!(told, expected);
    }
}
