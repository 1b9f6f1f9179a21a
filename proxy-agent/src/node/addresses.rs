//! Keeps `LOCAL_ADDRS` as the local routing table is.

pub mod desired;
#[cfg(test)]
mod tests;

use proxy_common::family::Family;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use super::{NODE_PATIENCE, netlink::Network};
use crate::{
    config::node_ports::NodePortAddresses,
    dataplane::{
        local_addrs::{Entries, LocalAddrTable},
        tables::{KernelFamily, TableError},
    },
    health::serve::Addresses,
    metrics::Metrics,
    model::{IpFamily, Node},
    notice::Notice,
};

/// `LOCAL_ADDRS` of one family.
pub(super) trait Table {
    type Family: Family;

    /// Returns how many prefixes there is room for.
    fn room(&self) -> usize;
    /// Makes the table hold what `wanted` has of this family; returns the
    /// number of changes.
    fn write(&mut self, wanted: &Entries) -> Result<usize, TableError>;
    /// Reads what is in the table, whoever wrote it.
    fn read_back(&mut self) -> Result<(), TableError>;
}

impl<F: KernelFamily> Table for LocalAddrTable<F> {
    type Family = F;

    fn room(&self) -> usize {
        Self::room(self)
    }

    fn write(&mut self, wanted: &Entries) -> Result<usize, TableError> {
        Self::write(self, wanted)
    }

    fn read_back(&mut self) -> Result<(), TableError> {
        Self::read_back(self)
    }
}

/// Keeps the node's own addresses.
pub(super) struct AddressController<T4, T6> {
    v4: T4,
    v6: T6,
    /// The value of `--nodeport-addresses`.
    node_ports: NodePortAddresses,
    /// This node's object as it was last seen: its address takes NodePorts even
    /// if the object is gone.
    seen_node: Option<Node>,
    /// Number of local prefixes that the tables have no room for, by family.
    without_room: Notice<[usize; 2]>,
    /// Addresses that take NodePorts one by one, for health check ports.
    listen: watch::Sender<Addresses>,
    metrics: Metrics,
    started: Instant,
}

impl<T4: Table, T6: Table> AddressController<T4, T6> {
    pub(super) fn new(
        v4: T4,
        v6: T6,
        node_ports: NodePortAddresses,
        listen: watch::Sender<Addresses>,
        metrics: Metrics,
    ) -> Self {
        Self {
            v4,
            v6,
            node_ports,
            seen_node: None,
            without_room: Notice::default(),
            listen,
            metrics,
            started: Instant::now(),
        }
    }

    /// Writes the changes. Writes nothing while the kernel's list cannot be read:
    /// NodePorts stay reachable where they were (S55).
    pub(super) async fn sync(
        &mut self,
        network: &impl Network,
        node: Option<&Node>,
    ) -> anyhow::Result<()> {
        let Some(wanted) = self.wanted(network, node).await? else {
            return Ok(());
        };
        let changes = self.write(&wanted)?;
        if changes > 0 {
            debug!(changes, "the node's addresses changed");
        }
        Ok(())
    }

    /// Compares the tables with what they should be, and repairs them.
    pub(super) async fn audit(
        &mut self,
        network: &impl Network,
        node: Option<&Node>,
    ) -> anyhow::Result<()> {
        let Some(wanted) = self.wanted(network, node).await? else {
            return Ok(());
        };
        // What changed without anybody touching the tables is no repair.
        self.write(&wanted)?;
        let v4 = audit(&mut self.v4, &wanted, &self.metrics);
        let v6 = audit(&mut self.v6, &wanted, &self.metrics);
        v4.and(v6)
    }

    /// Writes both families; a failure of one does not keep the other from being written.
    fn write(&mut self, wanted: &Entries) -> Result<usize, TableError> {
        let v4 = self.v4.write(wanted);
        let v6 = self.v6.write(wanted);
        Ok(v4? + v6?)
    }

    /// Returns the desired entries of the tables; `None` while they are not known. Sends the
    /// addresses for health check ports to `listen`.
    async fn wanted(
        &mut self,
        network: &impl Network,
        node: Option<&Node>,
    ) -> anyhow::Result<Option<Entries>> {
        self.seen_node = node.cloned().or(self.seen_node.take());
        let (flag, node) = (&self.node_ports, &self.seen_node);
        if flag.needs_node() && node.is_none() && self.started.elapsed() < NODE_PATIENCE {
            return Ok(None);
        }
        let local = network.local_prefixes().await?;
        let [v4, v6] = IpFamily::ALL.map(|family| flag.accepted(family, node.as_ref()));
        let mut wanted = desired::entries(&local, |family| match family {
            IpFamily::V4 => &v4,
            IpFamily::V6 => &v6,
        });
        self.fit(network, &mut wanted).await?;
        let addresses = Addresses {
            v4: desired::listen(&wanted, &v4),
            v6: desired::listen(&wanted, &v6),
        };
        self.listen.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
        Ok(Some(wanted))
    }

    /// Leaves out the prefixes that the tables have no room for, and logs their number.
    async fn fit(&mut self, network: &impl Network, wanted: &mut Entries) -> anyhow::Result<()> {
        let rooms = [self.v4.room(), self.v6.room()];
        let mut devices = Vec::new();
        if wanted.len() > rooms[0].min(rooms[1]) {
            let addresses = network.addresses().await?;
            devices.extend(addresses.iter().map(|each| (each.ifindex, each.ip)));
        }
        let mut without_room = [0; 2];
        for ((family, room), without_room) in
            IpFamily::ALL.into_iter().zip(rooms).zip(&mut without_room)
        {
            *without_room = desired::fit(wanted, family, room, devices.iter().copied());
        }
        if self.without_room.is_news(without_room) && without_room != [0; 2] {
            warn!(
                v4 = without_room[0],
                v6 = without_room[1],
                "more local prefixes than LOCAL_ADDRS has room for ({}, {}): these take no NodePorts; \
                 `ip route show table local` lists them, an unused kube-ipvs0 can be deleted",
                rooms[0],
                rooms[1]
            );
        }
        Ok(())
    }
}

fn audit<T: Table>(table: &mut T, wanted: &Entries, metrics: &Metrics) -> anyhow::Result<()> {
    table.read_back()?;
    let repairs = table.write(wanted)?;
    if repairs > 0 {
        warn!(
            family = T::Family::NAME,
            repairs, "addresses of the node were changed by someone else, repaired"
        );
        metrics.repaired::<T::Family>(repairs);
    }
    Ok(())
}
