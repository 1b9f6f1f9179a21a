//! Connections whose destination netfilter translates.

use std::{io, time::Duration};

use proxy_common::{
    family::{Family, V4, V6},
    foreign::Tuple,
    net::{BePort, Protocol},
};

use super::{PROTOCOLS, busy};
use crate::sys::netfilter::conntrack::{self, Connection, Ends};

/// A connection whose packets netfilter leads to another destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated<F: Family> {
    pub protocol: Protocol,
    /// The client's packets as they come in.
    pub request: Tuple<F::Addr>,
    /// The backend's answers as they come in.
    pub reply: Tuple<F::Addr>,
}

impl<F: Family> Translated<F> {
    /// The connection as kube-proxy's, if it may be: netfilter changes its destination,
    /// and it is not over.
    pub fn of(connection: &Connection) -> Option<Self> {
        let Connection {
            protocol,
            original,
            reply,
            is_over,
        } = connection;
        let protocol = Protocol(*protocol);
        let is_led =
            (original.destination, original.destination_port) != (reply.source, reply.source_port);
        if *is_over || !is_led || !PROTOCOLS.contains(&protocol) {
            return None;
        }
        Some(Self {
            protocol,
            request: tuple::<F>(protocol, original)?,
            reply: tuple::<F>(protocol, reply)?,
        })
    }

    /// The backend's address and port.
    pub fn backend(&self) -> (F::Addr, BePort) {
        (self.reply.src, self.reply.src_port)
    }

    /// Returns whether the backend sees another address or port than the client's.
    pub fn is_masqueraded(&self) -> bool {
        (self.reply.dst, self.reply.dst_port) != (self.request.src, self.request.src_port)
    }

    /// The name by which netfilter knows it.
    pub fn original(&self) -> Ends {
        let Tuple {
            src,
            dst,
            src_port,
            dst_port,
            ..
        } = self.request;
        Ends {
            source: F::ip(src).into(),
            destination: F::ip(dst).into(),
            source_port: src_port.get(),
            destination_port: dst_port.get(),
        }
    }
}

fn tuple<F: Family>(protocol: Protocol, ends: &Ends) -> Option<Tuple<F::Addr>> {
    Some(Tuple {
        src: F::addr(F::from_ip(ends.source)?),
        dst: F::addr(F::from_ip(ends.destination)?),
        src_port: BePort::new(ends.source_port),
        dst_port: BePort::new(ends.destination_port),
        protocol,
        zero: [0; 3],
    })
}

/// All of them, of both families.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub v4: Vec<Translated<V4>>,
    pub v6: Vec<Translated<V6>>,
    /// Time that a CPU worked on the list.
    pub work: Duration,
}

impl Found {
    /// Lists them on a thread of their own: there may be hundreds of thousands to look
    /// through.
    pub async fn list() -> io::Result<Self> {
        tokio::task::spawn_blocking(Self::list_now).await?
    }

    /// [`Found::list`] on this thread.
    pub fn list_now() -> io::Result<Self> {
        let mut found = Self::default();
        let start = busy();
        conntrack::list(libc::AF_INET, |connection| {
            found.v4.extend(Translated::of(&connection));
        })?;
        conntrack::list(libc::AF_INET6, |connection| {
            found.v6.extend(Translated::of(&connection));
        })?;
        found.work = busy().saturating_sub(start);
        Ok(found)
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}
