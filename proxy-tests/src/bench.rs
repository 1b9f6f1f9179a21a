//! Benchmarks: `cargo xtask bench NAME`.

pub mod datapath;
mod machine;
pub mod masquerade;
mod measure;
mod table;
