//! Remembers logged conditions, so that each is logged once, and again when it changes.

use std::collections::{BTreeMap, BTreeSet};

/// A condition that is logged when it changes.
#[derive(Debug)]
pub struct Notice<V> {
    said: Option<V>,
}

impl<V> Default for Notice<V> {
    fn default() -> Self {
        Self { said: None }
    }
}

impl<V: PartialEq> Notice<V> {
    /// Records a value as logged. Returns whether it differs from the last one.
    pub fn is_news(&mut self, value: V) -> bool {
        let is_news = self.said.as_ref() != Some(&value);
        self.said = Some(value);
        is_news
    }

    /// Notes that the condition is over. Returns whether there was one.
    pub fn clear(&mut self) -> bool {
        self.said.take().is_some()
    }
}

/// A condition of each object that is logged when it changes.
#[derive(Debug)]
pub struct Notices<K, V> {
    said: BTreeMap<K, V>,
}

impl<K, V> Default for Notices<K, V> {
    fn default() -> Self {
        Self {
            said: BTreeMap::new(),
        }
    }
}

impl<K: Ord, V: PartialEq> Notices<K, V> {
    /// Records a value of an object as logged. Returns whether it differs from the last
    /// one.
    pub fn is_news(&mut self, key: K, value: V) -> bool {
        let is_news = self.said.get(&key) != Some(&value);
        self.said.insert(key, value);
        is_news
    }

    /// Notes that an object's condition is over. Returns whether there was one.
    pub fn clear(&mut self, key: &K) -> bool {
        self.said.remove(key).is_some()
    }

    /// Forgets all objects but these.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.said.retain(|key, _| keep(key));
    }

    pub fn is_empty(&self) -> bool {
        self.said.is_empty()
    }
}

/// The present problems of every object that has any.
#[derive(Debug)]
pub struct Ledger<K, P> {
    known: BTreeMap<K, BTreeSet<P>>,
}

impl<K, P> Default for Ledger<K, P> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone, P: Ord + Clone> Ledger<K, P> {
    /// Takes in all present problems of an object. Returns those it did not
    /// have before.
    pub fn report(&mut self, key: &K, problems: Vec<P>) -> Vec<P> {
        if problems.is_empty() {
            self.known.remove(key);
            return problems;
        }
        let old = self
            .known
            .insert(key.clone(), problems.iter().cloned().collect())
            .unwrap_or_default();
        let mut fresh = problems;
        fresh.retain(|problem| !old.contains(problem));
        fresh
    }

    /// Forgets an object.
    pub fn forget(&mut self, key: &K) {
        self.known.remove(key);
    }

    /// Forgets all objects but these.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.known.retain(|key, _| keep(key));
    }

    /// The objects that have problems, and these.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &BTreeSet<P>)> {
        self.known.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_news_once_and_when_it_changes() {
        let mut notice = Notice::default();
        assert!(notice.is_news("full"));
        assert!(!notice.is_news("full"));
        assert!(notice.is_news("gone"));
        assert!(notice.clear() && !notice.clear());
        assert!(notice.is_news("gone"), "news again after it was over");
    }

    #[test]
    fn objects_have_notices_of_their_own() {
        let mut notices = Notices::default();
        assert!(notices.is_news(1, "full") && notices.is_news(2, "full"));
        assert!(!notices.is_news(1, "full") && notices.is_news(2, "gone"));
        assert!(notices.clear(&1) && !notices.clear(&1));
        notices.retain(|key| *key != 2);
        assert!(notices.is_empty());
    }

    #[test]
    fn a_problem_is_news_once() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.report(&1, vec!["a", "b"]), ["a", "b"]);
        assert_eq!(ledger.report(&1, vec!["b", "a"]), [""; 0]);
        assert_eq!(ledger.report(&1, vec!["b", "c"]), ["c"]);
        assert_eq!(ledger.report(&2, vec!["b"]), ["b"]);
    }

    #[test]
    fn a_problem_that_was_gone_is_news_again() {
        let mut ledger = Ledger::default();
        ledger.report(&1, vec!["a"]);
        ledger.report(&1, vec![]);
        assert_eq!(ledger.report(&1, vec!["a"]), ["a"]);
        ledger.forget(&1);
        assert_eq!(ledger.report(&1, vec!["a"]), ["a"]);
        ledger.retain(|key| *key != 1);
        assert_eq!(ledger.report(&1, vec!["a"]), ["a"]);
    }
}
