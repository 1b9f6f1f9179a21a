//! The kernel's side: programs, maps and hooks. The only module that knows aya.
//!
//! Everything is pinned below the bpf root, in a folder named after the layout
//! version:
//!
//! ```text
//! <bpf root>/v2/maps/FRONTENDS_V4 …      the tables
//! <bpf root>/v2/programs/ingress …       the programs, for bpftool
//! <bpf root>/v2/links/7-ingress …        one link for each device and hook
//! <bpf root>/v2/links/cgroup-1-connect4 … one for each cgroup hook
//! ```
//!
//! The pins keep the datapath alive without the agent (P4). An agent that
//! starts opens the maps it finds, loads its own programs on them and swaps
//! them in link by link.

pub mod attach;
pub(crate) mod bpf;
pub(crate) mod cgroup;
mod copy;
pub mod counters;
pub mod devices;
pub(crate) mod explain;
pub mod foreign;
pub mod growth;
pub(crate) mod held;
pub(crate) mod hooks;
pub mod load;
pub(crate) mod local_addrs;
pub(crate) mod log;
pub mod mapped;
pub mod maps;
#[cfg(any(test, feature = "test-programs"))]
mod memory;
pub(crate) mod other_layouts;
pub mod pins;
pub(crate) mod serving;
pub(crate) mod shares;
pub(crate) mod stale;
pub mod sweep;
pub mod tables;
pub mod vlans;

use proxy_common::family::Family;

use crate::plan::{
    filter::FlowEnds,
    write::{Capacity, Tables, Write},
};

/// One family's tables, wherever they are.
pub trait Dataplane<F: Family> {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Sizes of the tables.
    fn capacity(&self) -> Capacity;

    /// The tables as they are now.
    fn read(&self) -> Result<Tables<F>, Self::Error>;

    /// Shows every flow in the flow table. One that comes or goes meanwhile
    /// may be left out or shown twice.
    fn visit_flows(&self, visit: &mut dyn FnMut(&FlowEnds<F::Addr>)) -> Result<(), Self::Error>;

    /// Does one write.
    fn write(&mut self, write: &Write<F>) -> Result<(), Self::Error>;
}
