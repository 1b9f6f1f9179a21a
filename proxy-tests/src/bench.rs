//! Benchmarks: `cargo xtask bench NAME`.

pub mod datapath;
mod machine;
mod measure;
mod table;
