//! The last known state of the cluster, on disk.
//!
//! After a reboot nothing is left of the datapath, and the API server may be away: it may
//! even need this node to come back. The state that was known before is then better than
//! none, although what has changed meanwhile is not in it. [`store`] keeps it in a file,
//! [`snapshot`] says what is in there.

pub(crate) mod snapshot;
pub mod store;

pub(crate) use self::snapshot::Remembered;
pub use self::store::Store;
