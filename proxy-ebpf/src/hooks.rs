//! The programs at the hooks of a device.

pub mod egress;
pub mod explain;
pub mod fast;
pub mod forward;
pub mod host;
pub mod ingress;
pub mod masquerade;
pub mod symmetric_return;

use crate::{flow::Flows, maps::tail_call::SlowPrograms, reply::family::ReplyFamily};

/// All that the programs ask of a family.
pub trait Datapath: Flows + ReplyFamily + SlowPrograms {}

impl<F: Flows + ReplyFamily + SlowPrograms> Datapath for F {}
