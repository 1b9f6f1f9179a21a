//! Objects that are missing from a list that lost most of what there was.
//!
//! Such a list is more often a mistake than the truth: an API server with an empty
//! store, a directory that is being filled. The objects stay for a while, unless they
//! come back or are deleted one by one. All else that the list says takes effect at once.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

use crate::model::{Kind, ObjectKey};

/// How long they stay.
pub(super) const HOLD: Duration = Duration::from_mins(1);
/// So many may be missing, whatever their share is.
pub(super) const FEW: usize = 3;

/// How many Services a list has lost, or has lost all slices of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) services: usize,
    /// Of so many.
    pub(super) known: usize,
}

/// The objects that stay, and until when.
#[derive(Debug, Default)]
pub(super) struct Held {
    objects: BTreeMap<(Kind, ObjectKey), Instant>,
    /// Whatever is missing is gone.
    never: bool,
}

impl Held {
    /// Sets whether objects are never held.
    pub(super) fn set_never(&mut self, never: bool) {
        self.never = never;
    }

    /// Holds what a list lacks of the known objects, if that is most of them. Returns how
    /// many it newly holds.
    pub(super) fn hold(&mut self, kind: Kind, missing: &[ObjectKey], loss: Loss) -> usize {
        let is_most = loss.services > FEW && loss.services * 2 > loss.known;
        if self.never || !is_most || !matches!(kind, Kind::Service | Kind::EndpointSlice) {
            return 0;
        }
        let until = Instant::now() + HOLD;
        let before = self.objects.len();
        for key in missing {
            self.objects.entry((kind, key.clone())).or_insert(until);
        }
        self.objects.len() - before
    }

    /// Holds a slice as long as its Service.
    pub(super) fn hold_with(&mut self, service: &ObjectKey, slice: &ObjectKey) {
        let until = self.objects.get(&(Kind::Service, service.clone()));
        if let Some(until) = until.copied() {
            let slice = (Kind::EndpointSlice, slice.clone());
            self.objects.entry(slice).or_insert(until);
        }
    }

    pub(super) fn holds(&self, kind: Kind, key: &ObjectKey) -> bool {
        self.objects.contains_key(&(kind, key.clone()))
    }

    /// The object has been seen, or is known to be deleted.
    pub(super) fn forget(&mut self, kind: Kind, key: &ObjectKey) {
        if !self.objects.is_empty() {
            self.objects.remove(&(kind, key.clone()));
        }
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.objects.keys().filter(|key| key.0 == kind).count()
    }

    /// The time at which the first of them go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.objects.values().min().copied()
    }

    /// Returns those whose time is over, and holds them no more.
    pub(super) fn take_due(&mut self) -> Vec<(Kind, ObjectKey)> {
        let now = Instant::now();
        let due = self.objects.extract_if(.., |_, until| *until <= now);
        due.map(|(object, _)| object).collect()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn keys(names: std::ops::Range<usize>) -> Vec<ObjectKey> {
        let keys = names.map(|name| ObjectKey::new("shop", name.to_string()));
        keys.collect()
    }

    fn loss(services: usize, known: usize) -> Loss {
        Loss { services, known }
    }

    #[rstest]
    #[case::half(5, 10, 0)]
    #[case::more(6, 10, 6)]
    #[case::all_of_few(3, 3, 0)]
    #[case::all(4, 4, 4)]
    #[case::none(0, 10, 0)]
    #[tokio::test(start_paused = true)]
    async fn most_of_many_are_held(
        #[case] missing: usize,
        #[case] known: usize,
        #[case] held: usize,
    ) {
        for kind in [Kind::Service, Kind::EndpointSlice] {
            assert_eq!(
                Held::default().hold(kind, &keys(0..missing), loss(missing, known)),
                held
            );
        }
        let mut never = Held::default();
        never.set_never(true);
        assert_eq!(
            never.hold(Kind::Service, &keys(0..missing), loss(missing, known)),
            0
        );
        assert_eq!(
            Held::default().hold(Kind::Node, &keys(0..missing), loss(missing, known)),
            0
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_goes_a_minute_after_it_was_first_missing() {
        let mut held = Held::default();
        held.hold(Kind::Service, &keys(0..6), loss(6, 10));
        tokio::time::advance(HOLD / 2).await;
        assert_eq!(held.hold(Kind::Service, &keys(0..8), loss(8, 10)), 2);
        held.hold_with(&keys(0..1)[0], &keys(20..21)[0]);
        held.hold_with(&keys(9..10)[0], &keys(21..22)[0]);
        held.forget(Kind::Service, &keys(1..2)[0]);
        assert_eq!(
            (held.count(Kind::Service), held.count(Kind::EndpointSlice)),
            (7, 1)
        );
        assert_eq!(held.take_due(), []);
        tokio::time::advance(HOLD / 2).await;
        assert_eq!(held.take_due().len(), 6, "five Services and a slice");
        assert!(held.due().is_some() && held.holds(Kind::Service, &keys(7..8)[0]));
        tokio::time::advance(HOLD / 2).await;
        assert_eq!(held.take_due().len(), 2);
        assert_eq!(held.due(), None);
    }
}
