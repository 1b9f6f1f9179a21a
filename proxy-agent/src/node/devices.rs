//! Keeps programs on the devices that should have them, and `DEVICES` as they
//! are.

pub mod desired;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use anyhow::Context as _;
use proxy_common::{
    device::Device,
    family::{V4, V6},
};
use tokio::time::{Duration, Instant};
use tracing::{debug, info, warn};

use self::desired::Surroundings;
pub use self::desired::{Described, Layer, Link, LinkKind, Routes};
use super::{NodeController, netlink::Netlink};
use crate::{
    dataplane::{
        attach::{self, Target},
        load::Sizes,
        tables::TableError,
    },
    model::Node,
    sys,
};

/// Least time between two readings of the main routing table, which is long
/// and always changing on a router.
const READ_ROUTES: Duration = Duration::from_secs(1);
/// Time between attempts to put programs on a device that refuses them. What
/// has to change for it may not be seen, such as the filters of others.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Where the main routing table leads.
pub(super) struct MainRoutes {
    routes: Routes,
    /// Whether anything changed since they were read.
    stale: bool,
    next: Instant,
}

impl MainRoutes {
    pub(super) fn new() -> Self {
        Self {
            routes: Routes::default(),
            stale: true,
            next: Instant::now(),
        }
    }

    /// Routes may have changed.
    pub(super) fn touch(&mut self) {
        self.stale = true;
    }

    /// When to read them again, if they have to be.
    pub(super) fn due(&self) -> Option<Instant> {
        self.stale.then_some(self.next)
    }

    async fn refresh(&mut self, netlink: &Netlink) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.due().is_some_and(|due| due <= now) {
            self.next = now + READ_ROUTES;
            self.routes = netlink.main_routes().await?;
            self.stale = false;
        }
        Ok(())
    }
}

impl NodeController {
    /// Brings programs and their settings to where the devices are now.
    pub(super) async fn follow_devices(&mut self) -> anyhow::Result<()> {
        // Devices are followed even if routes cannot be; the old ones hold.
        let routes_read = self.main_routes.refresh(&self.netlink).await;
        let links = self.netlink.links().await?;
        let addresses = self.netlink.addresses().await?;
        let node = self.node.borrow().clone();
        self.write_detector(node.as_ref());
        let pods = self.config.local_detector.pod_ranges(node.as_ref());
        let described = desired::described(
            &links,
            &addresses,
            &Surroundings {
                detector: &self.config.local_detector,
                routes: &self.main_routes.routes,
                pods: &pods,
                node_v4: node.as_ref().and_then(Node::ip::<V4>),
                node_v6: node.as_ref().and_then(Node::ip::<V6>),
            },
        );
        self.write_shared_mac(described.values().any(Described::has_bridge_mac));
        let (wanted, bridges): (BTreeMap<_, _>, BTreeMap<_, _>) = described
            .into_iter()
            .partition(|(_, device)| device.carries_programs);
        let present = |ifindex: u32| links.iter().find(|link| link.ifindex == ifindex);
        // A device that refused programs may have a row and some of them.
        let refused = self.refused.keys();
        let refused = refused.filter(|ifindex| !bridges.contains_key(ifindex));
        let unwanted: BTreeSet<_> = self
            .attached
            .keys()
            .chain(refused)
            .filter(|ifindex| !wanted.contains_key(ifindex))
            .copied()
            .collect();
        for ifindex in unwanted {
            let name = present(ifindex).map(|link| link.name.clone());
            self.detach(ifindex, name.as_deref()).await;
        }
        self.try_again_at = None;
        self.without_room = 0;
        self.refused
            .retain(|ifindex, _| wanted.contains_key(ifindex) || bridges.contains_key(ifindex));
        for (ifindex, device) in wanted {
            self.hook(ifindex, device).await;
        }
        self.describe_bridges(&links, bridges);
        self.tell_of_room();
        self.vlans.set_all(&desired::vlans(&links))?;
        routes_read
    }

    /// Says how many devices `DEVICES` has no room for: when there are any, and
    /// again when they have doubled.
    fn tell_of_room(&mut self) {
        let Self {
            without_room,
            told_without_room,
            ..
        } = *self;
        if without_room > 2 * told_without_room {
            warn!(
                devices = without_room,
                "table DEVICES is full, so these devices are not served: it was made for {} of them; \
                 `proxy-agent cleanup` before the next start makes room for {}, and ends all open flows",
                self.table.entries(),
                Sizes::DEFAULT.devices
            );
        }
        if without_room == 0 || without_room > 2 * told_without_room {
            self.told_without_room = without_room;
        }
    }

    async fn hook(&mut self, ifindex: u32, wanted: Described) {
        if self.attached.get(&ifindex) == Some(&wanted) {
            return;
        }
        let name = wanted.name.clone();
        match self.try_to_hook(ifindex, &wanted).await {
            Ok(()) => {
                if self.refused.remove(&ifindex).is_some() {
                    info!(device = name, "the device is served now");
                }
                self.attached.insert(ifindex, wanted);
            }
            Err(error) => self.refuse(ifindex, &name, &error),
        }
    }

    async fn try_to_hook(&mut self, ifindex: u32, wanted: &Described) -> anyhow::Result<()> {
        if !self.attached.contains_key(&ifindex) {
            // An earlier agent's programs are on the device if it says so.
            let before = self.table.get(ifindex).unwrap_or_default().flags & Device::COVERED;
            let mut device = wanted.device;
            device.flags |= before;
            self.describe(ifindex, device)?;
            self.attach(ifindex, wanted).await?;
            debug!(device = wanted.name, ifindex, "programs attached");
        }
        self.describe(ifindex, attached(wanted.device))
    }

    /// Puts the programs on a device. Whether they were there.
    async fn attach(&mut self, ifindex: u32, device: &Described) -> anyhow::Result<bool> {
        let target = Target {
            name: &device.name,
            ifindex,
            layer3: device.layer3(),
        };
        let attached = attach::attach(
            &mut self.loaded.ebpf,
            &self.pins,
            &self.filters,
            self.mode,
            &target,
        );
        attached.await.context("cannot attach the programs")
    }

    /// Sees to it that what could not be done for a device is tried again in a
    /// while; says so once.
    fn refuse(&mut self, ifindex: u32, name: &str, error: &anyhow::Error) {
        let message = format!("{error:#}");
        if matches!(error.downcast_ref(), Some(TableError::Full { .. })) {
            self.without_room += 1;
            self.refused.insert(ifindex, message);
        } else if is_gone(error) {
            debug!(device = name, "the device went: {message}");
            self.refused.insert(ifindex, message);
        } else if self.refused.get(&ifindex) != Some(&message) {
            warn!(device = name, "{message}");
            self.refused.insert(ifindex, message);
        }
        self.try_again_at = Some(Instant::now() + TRY_AGAIN);
    }

    /// Puts the programs back on devices that somebody took them off.
    pub(super) async fn audit_devices(&mut self) {
        for (ifindex, device) in self.attached.clone() {
            match self.attach(ifindex, &device).await {
                Ok(true) => {}
                Ok(false) => warn!(
                    device = device.name,
                    "the programs were taken off by someone else, attached again"
                ),
                Err(error) => {
                    self.attached.remove(&ifindex);
                    // What keeps it from being described keeps it refused.
                    let _ = self.describe(ifindex, device.device);
                    self.refuse(ifindex, &device.name, &error);
                }
            }
        }
    }

    /// Describes the bridges to the programs, which run on their ports.
    fn describe_bridges(&mut self, links: &[Link], wanted: BTreeMap<u32, Described>) {
        let gone: Vec<_> = self
            .bridges
            .keys()
            .filter(|ifindex| !wanted.contains_key(ifindex))
            .copied()
            .collect();
        for ifindex in gone {
            self.bridges.remove(&ifindex);
            if !self.attached.contains_key(&ifindex) {
                self.table.remove(ifindex);
            }
        }
        for (ifindex, bridge) in wanted {
            let device =
                if desired::is_covered(ifindex, links, &|port| self.attached.contains_key(&port)) {
                    attached(bridge.device)
                } else {
                    bridge.device
                };
            if self.bridges.get(&ifindex) == Some(&device) {
                continue;
            }
            match self.describe(ifindex, device) {
                Ok(()) => {
                    self.refused.remove(&ifindex);
                    self.bridges.insert(ifindex, device);
                }
                Err(error) => self.refuse(ifindex, &bridge.name, &error),
            }
        }
    }

    /// Writes a row of `DEVICES`.
    fn describe(&mut self, ifindex: u32, device: Device) -> anyhow::Result<()> {
        let written = self.table.set(ifindex, device);
        written.context("cannot describe the device to the programs")
    }

    /// Takes the programs off a device, which has a name if it still exists.
    async fn detach(&mut self, ifindex: u32, name: Option<&str>) {
        let done = match name {
            Some(name) => {
                let target = Target {
                    name,
                    ifindex,
                    layer3: false,
                };
                attach::detach(&self.pins, &self.filters, &target).await
            }
            None => attach::forget(&self.pins, ifindex),
        };
        if let Err(error) = done {
            let error = anyhow::Error::new(error);
            warn!(ifindex, "cannot take the programs off a device: {error:#}");
        }
        self.table.remove(ifindex);
        self.attached.remove(&ifindex);
        debug!(ifindex, name, "programs taken off");
    }

    /// Removes pins and table entries of devices that went while no agent ran.
    pub(super) async fn forget_gone_devices(&mut self) -> anyhow::Result<()> {
        let links = self.netlink.links().await?;
        let is_gone = |ifindex: &u32| links.iter().all(|link| link.ifindex != *ifindex);
        let known: Vec<u32> = self
            .table
            .read()?
            .into_iter()
            .map(|(ifindex, _)| ifindex)
            .chain(attach::pinned_hooks(&self.pins).into_keys())
            .filter(is_gone)
            .collect();
        for ifindex in known {
            self.detach(ifindex, None).await;
        }
        Ok(())
    }

    /// Pins of another network namespace name other devices: the node is a
    /// container that was made anew.
    pub(super) async fn forget_other_namespace(&mut self) {
        let cookie = sys::netns::cookie();
        let Some(mut settings) = self.settings() else {
            return;
        };
        if settings.netns_cookie != cookie {
            for ifindex in attach::pinned_hooks(&self.pins).into_keys() {
                self.detach(ifindex, None).await;
            }
            settings.netns_cookie = cookie;
            self.set_settings(settings);
        }
    }
}

/// Whether it failed because the device is not there any more, which devices of
/// pods do all the time.
fn is_gone(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(<dyn std::error::Error>::downcast_ref);
    causes.any(|cause: &io::Error| cause.raw_os_error() == Some(libc::ENODEV))
}

fn attached(device: Device) -> Device {
    Device {
        flags: device.flags | Device::COVERED,
        ..device
    }
}
