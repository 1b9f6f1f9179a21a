//! Benchmarks: `cargo xtask bench NAME`.

pub mod datapath;
pub mod inplace;
mod machine;
pub mod masquerade;
mod measure;
pub mod scale;
mod table;
