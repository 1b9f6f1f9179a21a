//! The server's answer, which names the server and the client's address.

use std::{io, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// The first line of every answer, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The server's host.
    pub server: String,
    /// The client as the server sees it.
    pub client: SocketAddr,
    /// The address the server was reached at, as it sees it.
    pub local: SocketAddr,
}

impl Answer {
    /// The line, with its end.
    pub(crate) fn to_line(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// Reads the line back.
    pub(crate) fn parse(line: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_slice(line)?)
    }
}
