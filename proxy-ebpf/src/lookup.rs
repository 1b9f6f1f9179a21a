//! What a packet's addresses are to the node: frontend, backend, client. Decides and
//! writes nothing.

pub mod affinity;
pub mod choose;
pub mod client;
pub mod listener;
pub mod service_range;
