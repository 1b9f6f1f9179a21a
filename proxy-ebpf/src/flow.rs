//! Flows: their records, how they open, get ports and end.

pub mod decide;
pub mod deliver;
pub mod foreign;
pub mod fragment;
pub mod open;
pub mod outgoing;
pub mod peer;
pub mod place;
pub mod ports;
pub mod record;
pub mod reply_tuple;
pub mod share;
pub mod sweep;
pub mod table;
pub mod uplink;

use self::{place::Placing, ports::Ports, table::Remove};
use crate::lookup::Lookup;

/// All that code above this layer asks of a family.
pub trait Flows: Lookup + Remove + Placing + Ports {}

impl<F: Lookup + Remove + Placing + Ports> Flows for F {}
