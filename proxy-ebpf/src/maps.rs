//! The maps, by family.

pub mod node;
pub mod prefilter;
pub mod refusals;
pub mod scratch;
pub mod sweeps;
pub mod tables;
pub mod tail_call;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};

/// Table sizes here are small; the agent sets the real ones when it loads.
pub const SMALL: usize = 1024;
pub const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
pub const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
