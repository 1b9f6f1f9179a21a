//! A network in memory.

use std::{collections::VecDeque, io};

use ipnet::IpNet;

use super::{Event, NetlinkError, Network};
use crate::node::devices::{Address, Link, Routes};

/// The lists of a network, and its next events.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct FakeNetwork {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub local: Vec<IpNet>,
    pub routes: Routes,
    pub events: VecDeque<Event>,
    /// True if lists cannot be read.
    pub broken: bool,
    /// Number of attempts to open the connection anew that are still to fail.
    pub refusals: u32,
    /// Number of times that it was opened anew.
    pub opened: u32,
}

impl FakeNetwork {
    fn listed<T: Clone>(&self, list: &T) -> Result<T, NetlinkError> {
        if self.broken {
            return Err(NetlinkError::Links(rtnetlink::Error::RequestFailed));
        }
        Ok(list.clone())
    }
}

impl Network for FakeNetwork {
    async fn changed(&mut self) -> Event {
        match self.events.pop_front() {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    fn reopen(&mut self) -> Result<(), NetlinkError> {
        if self.refusals > 0 {
            self.refusals -= 1;
            return Err(NetlinkError::Open(io::ErrorKind::OutOfMemory.into()));
        }
        self.opened += 1;
        Ok(())
    }

    async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.listed(&self.links)
    }

    async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.listed(&self.addresses)
    }

    async fn local_prefixes(&self) -> Result<Vec<IpNet>, NetlinkError> {
        self.listed(&self.local)
    }

    async fn main_routes(&self) -> Result<Routes, NetlinkError> {
        self.listed(&self.routes)
    }
}
