//! Services that the tables cannot hold.

use crate::model::ServicePortName;
use proxy_common::table::Table;

/// Something about a Service port that the tables cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The port keeps what it had; other ports are not affected.
    #[error(
        "table {table} is full ({capacity} entries): {port} stays as it was{}",
        advice(*table)
    )]
    TableFull {
        port: ServicePortName,
        table: Table,
        capacity: u32,
    },
    /// Two Services claim one address and port; the first one keeps it.
    #[error("{frontend} of {port} already belongs to {owner}, which keeps it")]
    FrontendTaken {
        port: ServicePortName,
        frontend: String,
        owner: ServicePortName,
    },
}

impl Problem {
    /// The Service port that the problem is about.
    pub fn port(&self) -> &ServicePortName {
        match self {
            Self::TableFull { port, .. } | Self::FrontendTaken { port, .. } => port,
        }
    }

    /// The table that is full, if that is the problem.
    pub fn full_table(&self) -> Option<Table> {
        match self {
            Self::TableFull { table, .. } => Some(*table),
            Self::FrontendTaken { .. } => None,
        }
    }

    /// Label of the problem in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TableFull { .. } => "table_full",
            Self::FrontendTaken { .. } => "frontend_taken",
        }
    }
}

/// Returns the remedy for a full table, to go on the log line.
fn advice(table: Table) -> String {
    let flag = match table {
        Table::Slots | Table::Backends => "--max-endpoints",
        Table::Services | Table::Frontends | Table::Names => "--max-service-ports",
        _ => return String::new(),
    };
    format!("; start the agent with a larger {flag}, which harms no flow")
}

/// A table has no room for what was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full {
    pub(super) table: Table,
    pub(super) capacity: u32,
}
