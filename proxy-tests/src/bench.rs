//! Benchmarks: `cargo xtask bench NAME`.

pub mod datapath;
mod machine;
pub mod masquerade;
mod measure;
pub mod scale;
mod table;
