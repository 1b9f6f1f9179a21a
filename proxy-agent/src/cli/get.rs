//! The arguments of `get`.

use clap::{Args, ValueEnum};

use super::{PinArgs, value};
use crate::model::IpFamily;

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct GetArgs {
    /// What to show
    pub what: Resource,
    /// Format of the output
    #[arg(
        short,
        long,
        value_name = "FORM",
        default_value = "table",
        env = "TANDEM_OUTPUT"
    )]
    pub output: Output,
    /// Only this IP family
    #[arg(long, value_name = "4|6", value_parser = value::family, env = "TANDEM_FAMILY")]
    pub family: Option<IpFamily>,
    /// Only Services of this namespace
    #[arg(short, long, value_name = "NS", env = "TANDEM_NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub pins: PinArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resource {
    /// Service ports, with their frontends
    Services,
    /// Endpoints of Service ports
    Backends,
    /// Connections that are being translated
    Flows,
    /// Clients with session affinity, and their backends
    Affinity,
    /// Network devices that programs are attached to
    Devices,
    /// The node's own addresses, and which of them serve NodePorts
    Addresses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Yaml,
}
