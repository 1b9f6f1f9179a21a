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
pub mod cli;
pub mod commands;
pub mod config;
pub mod dataplane;
pub mod escape;
#[cfg(test)]
mod golden;
pub mod health;
pub mod http;
pub mod index;
pub mod metrics;
pub mod model;
pub mod node;
pub mod notice;
pub mod ownership;
pub mod plan;
pub mod predecessors;
pub mod reconcile;
pub mod retry;
pub mod select;
pub mod socket_lb;
pub mod source;
pub mod sys;
pub mod table_sync;
pub mod telemetry;
