//! Remembers what is wrong, so that it is said once and not at every sync.

use std::collections::{BTreeMap, BTreeSet};

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
}

#[cfg(test)]
mod tests {
    use super::*;

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
