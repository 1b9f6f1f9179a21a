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
pub mod agent;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod devices;
pub mod escape;
pub mod explain;
pub mod fair_share;
pub mod health;
pub mod http;
pub mod index;
pub mod inspect;
pub mod local_addrs;
pub mod metrics;
pub mod model;
pub mod node;
pub mod ownership;
pub mod plan;
pub mod predecessors;
pub mod reconcile;
pub mod select;
pub mod service_ranges;
pub mod settings;
pub mod sockets;
pub mod source;
pub mod system;
pub mod table_sync;
pub mod telemetry;
