//! Flows: their records, how they open, get ports and end.

pub mod fragment;
pub mod masquerade;
pub mod open;
pub mod outgoing;
pub mod peer;
pub mod record;
pub mod share;
pub mod sweep;
pub mod uplink;
