//! Datapaths that tests share, one after the other.

use std::{
    ops::{Deref, DerefMut},
    sync::Mutex,
};

use super::Datapath;

/// Datapaths that no test uses.
static FREE: Mutex<Vec<Datapath>> = Mutex::new(Vec::new());

/// A datapath that is given back on drop.
pub struct Lease(Option<Datapath>);

impl Lease {
    /// One that no test uses, else a new one.
    pub(super) fn of(new: impl FnOnce() -> Datapath) -> Self {
        let free = FREE.lock().expect("no panic with the lock held").pop();
        Self(Some(free.unwrap_or_else(new)))
    }
}

impl Deref for Lease {
    type Target = Datapath;

    fn deref(&self) -> &Datapath {
        self.0.as_ref().expect("taken on drop only")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Datapath {
        self.0.as_mut().expect("taken on drop only")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Ok(mut free) = FREE.lock() {
            free.extend(self.0.take());
        }
    }
}
