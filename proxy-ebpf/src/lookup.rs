//! Look-ups: what a packet's addresses are to the node, frontend, backend or client.
//! Changes no table.

pub mod affinity;
pub mod arrival;
pub mod backend;
pub mod client;
pub mod frontend;
pub mod listener;
pub mod service_range;
pub mod sockets;
pub mod source;

use self::{backend::Hash, frontend::LookUp, listener::Bound, sockets::Sockets};
use crate::route::Route;

/// All that code above this layer asks of a family.
pub trait Lookup: Route + Bound + Sockets + LookUp + Hash {}

impl<F: Route + Bound + Sockets + LookUp + Hash> Lookup for F {}
