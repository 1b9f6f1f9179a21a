//! The location of an endpoint, and the zones and nodes that should use it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pool::Pool;

/// The location of an endpoint, and the zones and nodes that should use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    /// The node it runs on; none for backends outside the cluster (S21).
    pub node: Option<Box<str>>,
    /// Zones and nodes that should use it, in ascending order (S29). Empty
    /// means no hint.
    pub zone_hints: Box<[Box<str>]>,
    pub node_hints: Box<[Box<str>]>,
}

/// Shared: thousands of endpoints have few distinct placements.
static PLACEMENTS: Pool<Placement> = Pool::new();

impl Placement {
    /// Returns the one placement in memory that is equal to this.
    pub fn shared(self) -> Arc<Self> {
        PLACEMENTS.get(self)
    }
}
