//! Traffic between test hosts: a server that answers with its name and the client's
//! address, and clients for every question a test asks. Clients work in the
//! namespace of the thread they are called on: call them in [`Host::run`].
//!
//! [`Host::run`]: crate::Host::run

mod answer;
mod bulk;
mod byte_server;
mod crowd;
mod descriptors;
mod expect;
mod heartbeat;
mod held_flows;
mod load;
mod open_flows;
mod path_error;
mod ping;
mod redirects;
mod sctp;
mod server;
mod server_tcp;
mod server_udp;
mod short_connections;
mod socket_option;
mod sources;
mod tcp;
mod udp;
mod udp_unconnected;
mod way;

pub use answer::Answer;
pub use byte_server::ByteServer;
pub use crowd::Transport;
pub use expect::{expect_everything, expect_refusal, expect_silence};
pub use heartbeat::{Heartbeat, HeartbeatReport};
pub use held_flows::{HeldFlows, Round};
pub use load::{ConnectLoad, LoadReport};
pub use open_flows::OpenFlows;
pub use path_error::PathError;
pub use ping::{ping, ping_with};
pub use redirects::Redirects;
pub use sctp::{SctpServer, ask_sctp};
pub use server::Server;
pub use short_connections::{ShortConnections, ShortReport};
pub use sources::Sources;
pub use tcp::{Connection, TcpClient, ask_tcp, spread_tcp};
pub use udp::{UdpClient, ask_udp, ask_udp_patiently, spread_udp};
pub use udp_unconnected::UdpTalker;
pub use way::{Way, mapped};

use std::time::Duration;

/// Time that a client waits for something that should come at once, on a machine
/// that is busy with other things and may make it send again.
pub const PATIENCE: Duration = Duration::from_secs(10);
