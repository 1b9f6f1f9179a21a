//! Tandem's node agent.
//!
//! Read the modules in this order to follow a Service from the API to the
//! kernel:
//!
//! ```text
//! source ─► model ─► index ─► select ─► plan ─► dataplane
//!   IO       pure     pure     pure     pure      IO
//!                  └────────── reconcile ──────────┘
//! ```
//!
//! [`node`] does the same for devices, addresses and settings of the node.

#![expect(
    unreachable_pub,
    reason = "modules are public where other crates use them; `pub` in the others is the crate's"
)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod dataplane;
mod escape;
mod events;
#[cfg(test)]
mod golden;
mod health;
mod http;
mod index;
mod last_state;
mod metrics;
pub mod model;
pub mod node;
mod notice;
mod ownership;
pub mod plan;
mod predecessors;
pub mod reconcile;
mod retry;
pub mod select;
mod socket_lb;
pub mod source;
pub mod sys;
pub mod table_sync;
pub mod takeover;
mod telemetry;
mod yaml;
