//! The maps, by family.

pub mod tables;
