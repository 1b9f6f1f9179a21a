//! Keeps programs on the devices that should have them, and `DEVICES` as they
//! are.

mod bridges;
mod desired;
#[cfg(test)]
pub(super) mod fake;
#[cfg(test)]
pub(super) mod fixtures;
mod kernel;
mod link;
mod masquerade;
mod pods;
mod refused;
mod room;
#[cfg(test)]
mod tests;
mod uplinks;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use anyhow::Context as _;
use proxy_common::device::Device;
use tokio::time::{Duration, Instant};
use tracing::{debug, info, warn};

pub(super) use self::kernel::{Attach, KernelAttach, KernelTables, Tables};
pub use self::{
    desired::{Desired, DesiredDevice, Inputs, desired},
    link::{Address, Layer, Link, LinkKind, Routes},
};
use self::{refused::Refused, room::WithoutRoom};
use crate::{
    dataplane::{attach::Target, load::Sizes, tables::TableError},
    health::state::Condition,
    retry::{Backoff, Retry},
};

/// Time between attempts to put programs on a device that refuses them. What
/// has to change for it may not be seen, such as the filters of others.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Keeps programs on devices.
pub(super) struct DeviceController<T> {
    tables: T,
    /// Devices with programs.
    attached: BTreeMap<u32, DesiredDevice>,
    /// Names of the devices that should have programs, and whether they are uplinks.
    wanted: BTreeMap<u32, (String, bool)>,
    /// Bridges, as described to the programs on their ports.
    bridges: BTreeMap<u32, Device>,
    /// Devices for which an operation failed, each with its error.
    refused: Refused,
    /// Those of them that the table has no room for.
    without_room: WithoutRoom,
    /// Time of the next attempt for the refused devices.
    retry: Retry,
}

impl<T: Tables> DeviceController<T> {
    pub(super) fn new(tables: T) -> Self {
        Self {
            tables,
            attached: BTreeMap::new(),
            wanted: BTreeMap::new(),
            bridges: BTreeMap::new(),
            refused: Refused::default(),
            without_room: WithoutRoom::default(),
            retry: Retry::new(Backoff::fixed(TRY_AGAIN)),
        }
    }

    /// Devices with programs.
    pub(super) fn attached(&self) -> impl Iterator<Item = u32> {
        self.attached.keys().copied()
    }

    /// Returns whether an operation failed for a device.
    pub(super) fn is_refused(&self, ifindex: u32) -> bool {
        self.refused.contains(ifindex)
    }

    /// Says which devices are not served. The node does not serve what it is sent if none
    /// of its uplinks is.
    pub(super) fn condition(&self) -> Option<Condition> {
        let mut refused: Vec<_> = self
            .refused
            .told()
            .filter_map(|(ifindex, message)| Some((self.wanted.get(&ifindex)?, message)))
            .collect();
        refused.sort_by_key(|((_, is_uplink), _)| !is_uplink);
        let ((name, _), message) = refused.first()?;
        let more = match refused.len() {
            1 => String::new(),
            devices => format!(", and {} more devices", devices - 1),
        };
        let mut uplinks = self.wanted.iter().filter(|(_, (_, is_uplink))| *is_uplink);
        let has_uplinks = uplinks.clone().next().is_some();
        Some(Condition {
            text: format!("device {name} is not served{more}: {message}"),
            fails: has_uplinks && uplinks.all(|(ifindex, _)| !self.attached.contains_key(ifindex)),
        })
    }

    /// The time of the next attempt for the refused devices.
    pub(super) fn due(&self) -> Option<Instant> {
        self.retry.due()
    }

    /// Brings programs and tables to where the devices are now.
    pub(super) async fn apply(
        &mut self,
        links: &[Link],
        desired: Desired,
        attach: &mut impl Attach,
    ) -> anyhow::Result<()> {
        let (wanted, bridges): (BTreeMap<_, _>, BTreeMap<_, _>) = desired
            .into_iter()
            .partition(|(_, device)| device.carries_programs);
        let described = wanted.iter().map(|(ifindex, device)| {
            let is_uplink = device.device.flags & Device::UPLINK != 0;
            (*ifindex, (device.name.clone(), is_uplink))
        });
        self.wanted = described.collect();
        let present = |ifindex: u32| links.iter().find(|link| link.ifindex == ifindex);
        // A device that refused programs may have a row and some of them.
        let refused = self.refused.devices();
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
            self.detach(ifindex, name.as_deref(), attach).await;
        }
        self.retry.succeeded();
        self.without_room.reset();
        self.refused
            .retain(|ifindex| wanted.contains_key(&ifindex) || bridges.contains_key(&ifindex));
        for (ifindex, device) in wanted {
            self.serve(ifindex, device, attach).await;
        }
        self.describe_bridges(links, bridges);
        self.tell_of_room();
        self.tables.set_vlans(&uplinks::vlans(links))?;
        Ok(())
    }

    /// Logs how many devices `DEVICES` has no room for.
    fn tell_of_room(&mut self) {
        if let Some(devices) = self.without_room.news() {
            warn!(
                devices,
                "table DEVICES is full, so these devices are not served: it was made for {} of them; \
                 `proxy-agent cleanup` before the next start makes room for {}, and ends all open flows",
                self.tables.room(),
                Sizes::DEFAULT.devices
            );
        }
    }

    async fn serve(&mut self, ifindex: u32, wanted: DesiredDevice, attach: &mut impl Attach) {
        if self.attached.get(&ifindex) == Some(&wanted) {
            return;
        }
        let name = wanted.name.clone();
        match self.try_to_serve(ifindex, &wanted, attach).await {
            Ok(()) => {
                if self.refused.remove(ifindex) {
                    info!(device = name, "the device is served now");
                }
                self.attached.insert(ifindex, wanted);
            }
            Err(error) => self.refuse(ifindex, &name, &error),
        }
    }

    async fn try_to_serve(
        &mut self,
        ifindex: u32,
        wanted: &DesiredDevice,
        attach: &mut impl Attach,
    ) -> anyhow::Result<()> {
        let known = self.attached.get(&ifindex);
        let was_another = known.is_some_and(|known| known.may_be_another(wanted));
        if was_another {
            // Programs of a device that is gone went with it.
            self.attached.remove(&ifindex);
        }
        if !self.attached.contains_key(&ifindex) {
            let mut device = wanted.device;
            if !was_another {
                // An earlier agent's programs are on the device if it says so.
                device.flags |=
                    self.tables.get(ifindex).unwrap_or_default().flags & Device::COVERED;
            }
            self.describe(ifindex, device)?;
            put_programs_on(ifindex, wanted, attach).await?;
            debug!(device = wanted.name, ifindex, "programs attached");
        }
        self.describe(ifindex, covered(wanted.device))
    }

    /// Schedules another attempt for a device, and logs its failure once.
    fn refuse(&mut self, ifindex: u32, name: &str, error: &anyhow::Error) {
        let message = format!("{error:#}");
        let is_gone = is_gone(error);
        let tell = self
            .refused
            .note(ifindex, &message, is_gone, Instant::now().into_std());
        if matches!(error.downcast_ref(), Some(TableError::Full { .. })) {
            self.without_room.add();
        } else if is_gone && tell {
            warn!(
                device = name,
                "the device is not served: it is listed, but the kernel has been saying for a minute that there is no such device: {message}"
            );
        } else if is_gone {
            debug!(device = name, "the device went: {message}");
        } else if tell {
            warn!(device = name, "{message}");
        }
        self.retry.failed();
    }

    /// Puts the programs back on devices that somebody took them off.
    pub(super) async fn audit(&mut self, attach: &mut impl Attach) {
        for (ifindex, device) in self.attached.clone() {
            match put_programs_on(ifindex, &device, attach).await {
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
    fn describe_bridges(&mut self, links: &[Link], wanted: Desired) {
        let gone: Vec<_> = self
            .bridges
            .keys()
            .filter(|ifindex| !wanted.contains_key(ifindex))
            .copied()
            .collect();
        for ifindex in gone {
            self.bridges.remove(&ifindex);
            if !self.attached.contains_key(&ifindex) {
                self.tables.remove(ifindex);
            }
        }
        for (ifindex, bridge) in wanted {
            let has_programs = |port| self.attached.contains_key(&port);
            let device = if bridges::is_covered(ifindex, links, &has_programs) {
                covered(bridge.device)
            } else {
                bridge.device
            };
            if self.bridges.get(&ifindex) == Some(&device) {
                continue;
            }
            match self.describe(ifindex, device) {
                Ok(()) => {
                    self.refused.remove(ifindex);
                    self.bridges.insert(ifindex, device);
                }
                Err(error) => self.refuse(ifindex, &bridge.name, &error),
            }
        }
    }

    /// Writes a row of `DEVICES`.
    fn describe(&mut self, ifindex: u32, device: Device) -> anyhow::Result<()> {
        let written = self.tables.set(ifindex, device);
        written.context("cannot describe the device to the programs")
    }

    /// Takes the programs off a device, which has a name if it still exists.
    async fn detach(&mut self, ifindex: u32, name: Option<&str>, attach: &mut impl Attach) {
        let done = match name {
            Some(name) => {
                let target = Target {
                    name,
                    ifindex,
                    layer3: false,
                };
                attach.detach(&target).await
            }
            None => attach.forget(ifindex),
        };
        if let Err(error) = done {
            let error = anyhow::Error::new(error);
            warn!(ifindex, "cannot take the programs off a device: {error:#}");
        }
        self.tables.remove(ifindex);
        self.attached.remove(&ifindex);
        debug!(ifindex, name, "programs taken off");
    }

    /// Removes pins and rows of devices that went while no agent ran.
    pub(super) async fn forget_gone(
        &mut self,
        links: &[Link],
        attach: &mut impl Attach,
    ) -> Result<(), TableError> {
        let is_gone = |ifindex: &u32| links.iter().all(|link| link.ifindex != *ifindex);
        let known: Vec<u32> = self
            .tables
            .rows()?
            .into_iter()
            .map(|(ifindex, _)| ifindex)
            .chain(attach.kept().into_keys())
            .filter(is_gone)
            .collect();
        for ifindex in known {
            self.detach(ifindex, None, attach).await;
        }
        Ok(())
    }

    /// Removes all pins: they are of another network namespace and name other
    /// devices.
    pub(super) async fn forget_all(&mut self, attach: &mut impl Attach) {
        for ifindex in attach.kept().into_keys() {
            self.detach(ifindex, None, attach).await;
        }
    }
}

/// Puts the programs on a device; returns whether they were there.
async fn put_programs_on(
    ifindex: u32,
    device: &DesiredDevice,
    attach: &mut impl Attach,
) -> anyhow::Result<bool> {
    let target = Target {
        name: &device.name,
        ifindex,
        layer3: device.layer3(),
    };
    let attached = attach.attach(&target).await;
    attached.context("cannot attach the programs")
}

/// Returns whether it failed because the device is not there any more, which devices of
/// pods do all the time.
fn is_gone(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(<dyn std::error::Error>::downcast_ref);
    causes.any(|cause: &io::Error| cause.raw_os_error() == Some(libc::ENODEV))
}

fn covered(device: Device) -> Device {
    Device {
        flags: device.flags | Device::COVERED,
        ..device
    }
}
