//! Values that occur over and over: equal ones are one in memory.

use std::{
    borrow::Borrow,
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// Shares equal values, for as long as anyone has them.
pub(super) struct Pool<T: ?Sized>(Mutex<Values<T>>);

/// All values that were shared lately.
struct Values<T: ?Sized> {
    values: BTreeSet<Arc<T>>,
    /// Size at which unused ones are looked for.
    limit: usize,
}

const LEAST_LIMIT: usize = 64;

impl<T: ?Sized + Ord> Pool<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Values {
            values: BTreeSet::new(),
            limit: LEAST_LIMIT,
        }))
    }

    /// The one value in memory that is equal to this.
    pub(super) fn get(&self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = pool.values.get(value.borrow()) {
            return Arc::clone(shared);
        }
        if pool.values.len() >= pool.limit {
            pool.values.retain(|shared| Arc::strong_count(shared) > 1);
            pool.limit = (2 * pool.values.len()).max(LEAST_LIMIT);
        }
        let shared = value.into();
        pool.values.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one() {
        let pool = Pool::<str>::new();
        let (one, other) = (pool.get("a"), pool.get("a".to_owned()));
        assert!(Arc::ptr_eq(&one, &other));
        assert!(!Arc::ptr_eq(&one, &pool.get("b")));
    }

    #[test]
    fn unused_values_go() {
        let pool = Pool::<str>::new();
        let kept: Vec<_> = (0..10).map(|number| pool.get(number.to_string())).collect();
        for number in 0..1000 {
            pool.get(number.to_string());
        }
        assert!(pool.0.lock().expect("nobody panicked").values.len() <= LEAST_LIMIT);
        for (number, kept) in kept.iter().enumerate() {
            assert!(Arc::ptr_eq(kept, &pool.get(number.to_string())));
        }
    }
}
