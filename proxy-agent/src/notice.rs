//! Remembers what was said, so that it is said once, and again when it changes.

use std::collections::BTreeMap;

/// One thing to be said.
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
    /// Returns whether this is not what was said last, and takes it as said.
    pub fn is_news(&mut self, value: V) -> bool {
        let is_news = self.said.as_ref() != Some(&value);
        self.said = Some(value);
        is_news
    }

    /// There is nothing to be said any more. Returns whether there was.
    pub fn clear(&mut self) -> bool {
        self.said.take().is_some()
    }
}

/// One thing to be said of each object.
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
    /// Returns whether this is not what was said last of the object, and takes
    /// it as said.
    pub fn is_news(&mut self, key: K, value: V) -> bool {
        let is_news = self.said.get(&key) != Some(&value);
        self.said.insert(key, value);
        is_news
    }

    /// There is nothing to be said of the object any more. Returns whether
    /// there was.
    pub fn clear(&mut self, key: &K) -> bool {
        self.said.remove(key).is_some()
    }

    /// Forgets all objects but these.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.said.retain(|key, _| keep(key));
    }

    /// The objects of which something was said.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.said.keys()
    }

    pub fn contains(&self, key: &K) -> bool {
        self.said.contains_key(key)
    }

    pub fn is_empty(&self) -> bool {
        self.said.is_empty()
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
        assert!(notices.clear(&1) && !notices.contains(&1));
        notices.retain(|key| *key != 2);
        assert!(notices.is_empty());
    }
}
