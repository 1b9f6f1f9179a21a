//! Crafted packets through the real programs, one at a time, without devices.
//!
//! ```text
//! Datapath ── the programs and tables, loaded as the agent loads them
//!  ├─ ServicePort   a row of the tables, with its Frontends
//!  ├─ Packet        the packet that goes in, and the one that must come out
//!  └─ Ran           verdict, packet and counters of one run
//! ```
//!
//! Expected packets are described and built from nothing, like those that go in,
//! so a comparison of bytes also compares every checksum. [`check`] then parses
//! the result by the etherparse crate, which shares no code with either side.

mod bytes;
mod cast;
pub mod check;
mod datapath;
mod describe;
mod fill;
mod frontend;
mod icmp;
mod run;

pub(crate) use bytes::crc32c;
pub use cast::Cast;
pub use datapath::{AffinityRecord, Datapath, FlowRecord, Lease};
pub use describe::{
    Body, Extension, Fragment, MAC_BRIDGE, MAC_OTHER, MAC_PEER, MAC_SELF, Packet, chunk,
};
pub use fill::ServicePort;
pub use frontend::Frontend;
pub use run::{Hook, Ran, Runner, Verdict};
