//! The contract of the agent and the eBPF programs: the layout of every map and
//! the arithmetic both sides must do alike.
//!
//! Layout rules:
//! - every type is `repr(C)`, its padding is spelled out, its size asserted;
//! - addresses and ports are the bytes that stand in the packet (network
//!   order), everything else is in host order;
//! - nothing wider than eight aligned bytes changes in place while a program
//!   may read it ([`service::SlotRange`] is the one such store that matters);
//! - any change of a layout or of its meaning raises [`LAYOUT_VERSION`].
//!
//! The modules follow a packet: [`prefilter`] says whether it may be ours,
//! [`frontend`], [`local_addr`] and [`source_range`] where it connects to and whether
//! it may, [`service`], [`backend`] and [`affinity`] where it goes, [`flow`],
//! [`masquerade`], [`fragment`] and [`socket`] remember that, [`foreign`] what is another
//! proxy's, [`share`] limits it,
//! [`counter`] counts it, and [`explain`] tells it beforehand. [`table`] lists the maps.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(not(any(test, feature = "user")), no_std)]
#![allow(
    clippy::inline_always,
    reason = "the programs inline nearly everything: calls cost them registers and stack"
)]

pub mod affinity;
pub mod backend;
pub mod checksum;
pub mod config;
pub mod counter;
pub mod crc32c;
pub mod device;
pub mod explain;
pub mod family;
pub mod flow;
pub mod foreign;
pub mod fragment;
pub mod frontend;
pub mod local_addr;
pub mod masquerade;
pub mod net;
pub mod prefilter;
pub mod select;
pub mod service;
pub mod share;
pub mod siphash;
pub mod socket;
pub mod source_range;
pub mod table;
pub mod vlan;

/// Version of the map layouts. Pins live in a folder of this name, so an agent
/// never reads tables that another version laid out.
pub const LAYOUT_VERSION: u32 = 2;

/// Version of the layout and the meaning of the tables that open flows need:
/// `FLOWS`, `MASQ` and `PREFILTER`. Agents of different [`LAYOUT_VERSION`]s with
/// the same one here take over each other's open flows; so it is raised only if
/// one of these tables changes, and [`LAYOUT_VERSION`] with it.
pub const FLOW_LAYOUT: u32 = 2;

/// The version before [`FLOW_LAYOUT`], whose open flows are taken over, too. It had
/// no [`flow::Flow::HOST`]: flows of the host's own processes, and only those, had
/// an uplink.
pub const FORMER_FLOW_LAYOUT: u32 = 1;

/// Marks map keys and values as plain bytes for aya.
macro_rules! pod {
    ($($type:ty),+ $(,)?) => { $(
        // SAFETY: `repr(C)` of integers and byte arrays with explicit padding:
        // every bit pattern is a value and no byte is uninitialised.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    )+ };
}
pub(crate) use pod;
