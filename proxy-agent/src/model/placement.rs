//! Where an endpoint is and who should use it.
//!
//! Endpoints by the thousand are in a few places. Equal placements are one in
//! memory, for as long as anyone has them.

use std::{cell::RefCell, collections::BTreeSet, sync::Arc};

/// Where an endpoint is and who should use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placement {
    /// The node it runs on; none for backends outside the cluster (S21).
    pub node: Option<Box<str>>,
    /// Zones and nodes that should use it, in ascending order (S29). Empty
    /// means no hint.
    pub zone_hints: Box<[Box<str>]>,
    pub node_hints: Box<[Box<str>]>,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

impl Placement {
    /// The one placement in memory that is equal to this.
    pub fn shared(self) -> Arc<Self> {
        POOL.with_borrow_mut(|pool| pool.get(self))
    }
}

/// All placements that were shared lately.
struct Pool {
    placements: BTreeSet<Arc<Placement>>,
    /// Size at which unused ones are looked for.
    limit: usize,
}

impl Pool {
    const LEAST_LIMIT: usize = 64;

    const fn new() -> Self {
        Self {
            placements: BTreeSet::new(),
            limit: Self::LEAST_LIMIT,
        }
    }

    fn get(&mut self, placement: Placement) -> Arc<Placement> {
        if let Some(shared) = self.placements.get(&placement) {
            return Arc::clone(shared);
        }
        if self.placements.len() >= self.limit {
            self.placements
                .retain(|shared| Arc::strong_count(shared) > 1);
            self.limit = (2 * self.placements.len()).max(Self::LEAST_LIMIT);
        }
        let shared = Arc::new(placement);
        self.placements.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_node(number: usize) -> Placement {
        Placement {
            node: Some(format!("node-{number}").into()),
            ..Placement::default()
        }
    }

    #[test]
    fn equal_placements_are_one() {
        let (one, other) = (on_node(1).shared(), on_node(1).shared());
        assert!(Arc::ptr_eq(&one, &other));
        assert!(!Arc::ptr_eq(&one, &on_node(2).shared()));
    }

    #[test]
    fn unused_placements_go() {
        let mut pool = Pool::new();
        let kept: Vec<_> = (0..10).map(|number| pool.get(on_node(number))).collect();
        for number in 0..1000 {
            pool.get(on_node(number));
        }
        assert!(pool.placements.len() <= Pool::LEAST_LIMIT);
        for (number, kept) in kept.iter().enumerate() {
            assert!(Arc::ptr_eq(kept, &pool.get(on_node(number))));
        }
    }
}
