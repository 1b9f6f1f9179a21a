//! The programs at the hooks of a device.

pub mod egress;
pub mod explain;
pub mod fast;
pub mod host;
pub mod ingress;
