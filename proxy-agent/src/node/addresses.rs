//! Keeps `LOCAL_ADDRS` as the local routing table is.

pub mod desired;

use tracing::{debug, warn};

pub use self::desired::Entries;
use super::{NODE_PATIENCE, NodeController};
use crate::{
    dataplane::{local_addrs::LocalAddrTable, tables::KernelFamily},
    health::serve::Addresses,
    metrics::Metrics,
    model::IpFamily,
};

impl NodeController {
    /// Writes what changed. Nothing does while the kernel's list cannot be
    /// read: NodePorts stay reachable where they were (S55).
    pub(super) async fn follow_local_addrs(&mut self) -> anyhow::Result<()> {
        let Some(wanted) = self.wanted_local_addrs().await? else {
            return Ok(());
        };
        // A family that fails must not keep the other from being written.
        let v4 = self.local_v4.write(&wanted);
        let v6 = self.local_v6.write(&wanted);
        let changes = v4? + v6?;
        if changes > 0 {
            debug!(changes, "the node's addresses changed");
        }
        Ok(())
    }

    /// What the tables should hold, if that is known yet. Says where health
    /// check ports are to be opened, too.
    async fn wanted_local_addrs(&mut self) -> anyhow::Result<Option<Entries>> {
        let now = self.node.borrow().clone();
        self.seen_node = now.or(self.seen_node.take());
        let (flag, node) = (&self.config.node_port_addresses, &self.seen_node);
        if flag.needs_node() && node.is_none() && self.started.elapsed() < NODE_PATIENCE {
            return Ok(None);
        }
        let local = self.netlink.local_prefixes().await?;
        let [v4, v6] = IpFamily::ALL.map(|family| flag.accepted(family, node.as_ref()));
        let mut wanted = desired::entries(&local, |family| match family {
            IpFamily::V4 => &v4,
            IpFamily::V6 => &v6,
        });
        self.fit_local_addrs(&mut wanted).await?;
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

    /// Leaves out what the tables have no room for, and says how much that is.
    async fn fit_local_addrs(&mut self, wanted: &mut Entries) -> anyhow::Result<()> {
        let rooms = [self.local_v4.room(), self.local_v6.room()];
        let mut devices = Vec::new();
        if wanted.len() > rooms[0].min(rooms[1]) {
            let addresses = self.netlink.addresses().await?;
            devices.extend(addresses.iter().map(|each| (each.ifindex, each.ip)));
        }
        let mut left_out = [0; 2];
        for ((family, room), left_out) in IpFamily::ALL.into_iter().zip(rooms).zip(&mut left_out) {
            *left_out = desired::fit(wanted, family, room, devices.iter().copied());
        }
        if left_out != self.local_left_out && left_out != [0; 2] {
            warn!(
                v4 = left_out[0],
                v6 = left_out[1],
                "more local prefixes than LOCAL_ADDRS has room for ({}, {}): these take no NodePorts; \
                 `ip route show table local` lists them, an unused kube-ipvs0 can be deleted",
                rooms[0],
                rooms[1]
            );
        }
        self.local_left_out = left_out;
        Ok(())
    }

    /// Compares the tables with what they should be, and repairs them.
    pub(super) async fn audit_local_addrs(&mut self) -> anyhow::Result<()> {
        let Some(wanted) = self.wanted_local_addrs().await? else {
            return Ok(());
        };
        // What changed without anybody touching the tables is no repair.
        let v4 = self.local_v4.write(&wanted);
        let v6 = self.local_v6.write(&wanted);
        v4.and(v6)?;
        let v4 = audit(&mut self.local_v4, &wanted, &self.metrics);
        let v6 = audit(&mut self.local_v6, &wanted, &self.metrics);
        v4.and(v6)
    }
}

fn audit<F: KernelFamily>(
    table: &mut LocalAddrTable<F>,
    wanted: &Entries,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    table.read_back()?;
    let repairs = table.write(wanted)?;
    if repairs > 0 {
        warn!(
            family = F::NAME,
            repairs, "addresses of the node were changed by someone else, repaired"
        );
        metrics.repaired::<F>(repairs);
    }
    Ok(())
}
