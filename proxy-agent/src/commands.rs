//! What `proxy-agent` does, one file for each of its commands.

pub mod check;
pub mod cleanup;
pub mod completions;
pub mod explain;
pub mod get;
pub mod man;
pub mod run;
