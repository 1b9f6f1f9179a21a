//! Ends sockets that are connected to a UDP backend which serves no more.
//!
//! A connected socket was translated once, so nothing leads its packets
//! elsewhere; the application hears of it, connects again, and gets another
//! backend.

use anyhow::Context as _;
use proxy_common::socket::SocketQuery;
use tracing::{debug, warn};

use super::{
    diag::{Connected, Diag},
    namespaces,
};
use crate::dataplane::stale::StaleSockets;

/// Fails if stale sockets of this process's network namespace cannot be ended.
pub fn check_own() -> anyhow::Result<()> {
    let diag = Diag::open().context("open a sock_diag socket")?;
    diag.can_end().context("end a UDP socket")
}

/// Fails if stale sockets of other network namespaces cannot be ended.
pub fn check_others() -> anyhow::Result<()> {
    check_own()?;
    namespaces::may_enter().context("enter network namespaces (is SYS_ADMIN granted?)")
}

/// Ends what is stale now, in all network namespaces; returns how many sockets
/// that were.
pub fn end_stale(sockets: &StaleSockets) -> usize {
    let mut ended = 0;
    let mut end = || {
        if let Err(error) = end_here(sockets, &mut ended) {
            warn!("cannot end sockets of removed UDP backends: {error:#}");
        }
    };
    end();
    if let Err(error) = namespaces::visit_others(end) {
        // Said at the start, and their sockets are left to the packet path.
        debug!("cannot enter pods' network namespaces: {error}");
    }
    ended
}

/// Ends those of this thread's network namespace, and counts them. One that
/// cannot be ended keeps no other from it; the first failure is returned.
fn end_here(sockets: &StaleSockets, ended: &mut usize) -> anyhow::Result<()> {
    let diag = Diag::open().context("open a sock_diag socket")?;
    let connected = diag.connected().context("list connected UDP sockets")?;
    let mut result = Ok(());
    for socket in connected {
        match end_if_stale(sockets, &diag, &socket) {
            Ok(is_ended) => *ended += usize::from(is_ended),
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

fn end_if_stale(sockets: &StaleSockets, diag: &Diag, socket: &Connected) -> anyhow::Result<bool> {
    if !sockets.is_stale(&query(socket), socket.interface())? {
        return Ok(false);
    }
    match diag.end(socket) {
        Ok(()) => Ok(true),
        // Closed, or connected elsewhere meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("end a socket"),
    }
}

fn query(socket: &Connected) -> SocketQuery {
    let (local_addr, local_port) = socket.local();
    let (peer_addr, peer_port) = socket.peer();
    SocketQuery {
        cookie: socket.cookie(),
        local_addr,
        peer_addr,
        local_port,
        peer_port,
        zero: [0; 4],
    }
}
