//! Ends sockets that are connected to a UDP backend which serves no more.
//!
//! A connected socket was translated once, so nothing leads its packets
//! elsewhere; the application hears of it, connects again, and gets another
//! backend.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::socket::StaleSocket;
use tracing::{debug, warn};

use super::{
    diag::Diag,
    namespaces::{find, within},
};
use crate::{dataplane::stale::StaleSockets, keeper::netns_cookie};

/// Ends what is stale now; returns how many sockets that were.
pub fn end_stale(sockets: &StaleSockets) -> usize {
    let stale = match sockets.read() {
        Ok(stale) => stale,
        Err(error) => {
            warn!("cannot look for sockets of removed UDP backends: {error}");
            return 0;
        }
    };
    let mut by_namespace: BTreeMap<u64, Vec<StaleSocket>> = BTreeMap::new();
    for socket in stale {
        by_namespace
            .entry(socket.netns_cookie)
            .or_default()
            .push(socket);
    }
    let own = by_namespace
        .remove(&netns_cookie())
        .map_or(0, |stale| end_here(&stale));
    if by_namespace.is_empty() {
        return own;
    }
    let cookies: BTreeSet<_> = by_namespace.keys().copied().collect();
    let namespaces = find(&cookies);
    let mut ended = own;
    for (cookie, stale) in by_namespace {
        let Some(namespace) = namespaces.get(&cookie) else {
            warn!(
                sockets = stale.len(),
                "cannot enter a pod's network namespace to end sockets of a removed UDP backend; they stay connected to it (is SYS_ADMIN granted and /run/netns mounted?)"
            );
            continue;
        };
        match within(namespace, || end_here(&stale)) {
            Ok(count) => ended += count,
            Err(error) => debug!("a network namespace went away: {error}"),
        }
    }
    ended
}

/// Ends those sockets of this thread's network namespace that are still
/// connected to where they were led.
fn end_here(stale: &[StaleSocket]) -> usize {
    let diag = match Diag::open() {
        Ok(diag) => diag,
        Err(error) => {
            warn!("cannot end sockets of removed UDP backends: {error}");
            return 0;
        }
    };
    let connected = match diag.connected() {
        Ok(connected) => connected,
        Err(error) => {
            warn!("cannot list UDP sockets to end those of removed backends: {error}");
            return 0;
        }
    };
    let mut ended = 0;
    for socket in connected {
        let is_stale = stale.iter().any(|stale| {
            stale.cookie == socket.cookie()
                && (stale.backend_addr, stale.backend_port) == socket.peer()
        });
        if !is_stale {
            continue;
        }
        match diag.end(&socket) {
            Ok(()) => ended += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => warn!("cannot end a socket of a removed UDP backend: {error}"),
        }
    }
    ended
}
