//! The kernel as the device controller sees it: hooks of devices, and two tables.

use std::collections::BTreeMap;

use aya::Ebpf;
use proxy_common::{device::Device, vlan::Vlan};

use crate::dataplane::{
    attach::{self, AttachError, Mode, Target, clsact::Filters},
    devices::DeviceTable,
    pins::Pins,
    tables::TableError,
    vlans::VlanTable,
};

/// Puts programs on devices and takes them off.
pub(in crate::node) trait Attach {
    /// Attaches both programs; returns whether they were there.
    async fn attach(&mut self, target: &Target<'_>) -> Result<bool, AttachError>;
    /// Takes them off a device that is there.
    async fn detach(&mut self, target: &Target<'_>) -> Result<(), AttachError>;
    /// Removes what is kept of a device that is gone.
    fn forget(&mut self, ifindex: u32) -> Result<(), AttachError>;
    /// Returns how many programs of each device are kept.
    fn kept(&self) -> BTreeMap<u32, usize>;
}

/// `DEVICES` and `VLANS`.
pub(in crate::node) trait Tables {
    /// Returns how many devices there is room for.
    fn room(&self) -> u32;
    fn rows(&self) -> Result<Vec<(u32, Device)>, TableError>;
    fn get(&self, ifindex: u32) -> Option<Device>;
    fn set(&mut self, ifindex: u32, device: Device) -> Result<(), TableError>;
    /// Removes a device, if it is there.
    fn remove(&mut self, ifindex: u32);
    fn set_vlans(&mut self, vlans: &BTreeMap<Vlan, u32>) -> Result<(), TableError>;
}

/// Attaches loaded programs, and pins their links.
pub(in crate::node) struct KernelAttach<'a> {
    pub ebpf: &'a mut Ebpf,
    pub pins: &'a Pins,
    pub filters: &'a Filters,
    pub mode: Mode,
}

impl Attach for KernelAttach<'_> {
    async fn attach(&mut self, target: &Target<'_>) -> Result<bool, AttachError> {
        attach::attach(self.ebpf, self.pins, self.filters, self.mode, target).await
    }

    async fn detach(&mut self, target: &Target<'_>) -> Result<(), AttachError> {
        attach::detach(self.pins, self.filters, target).await
    }

    fn forget(&mut self, ifindex: u32) -> Result<(), AttachError> {
        attach::forget(self.pins, ifindex)
    }

    fn kept(&self) -> BTreeMap<u32, usize> {
        attach::pinned_hooks(self.pins)
    }
}

/// The pinned tables.
pub(in crate::node) struct KernelTables {
    devices: DeviceTable,
    vlans: VlanTable,
}

impl KernelTables {
    pub(in crate::node) fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self {
            devices: DeviceTable::open(pins)?,
            vlans: VlanTable::open(pins)?,
        })
    }
}

impl Tables for KernelTables {
    fn room(&self) -> u32 {
        self.devices.entries()
    }

    fn rows(&self) -> Result<Vec<(u32, Device)>, TableError> {
        self.devices.read()
    }

    fn get(&self, ifindex: u32) -> Option<Device> {
        self.devices.get(ifindex)
    }

    fn set(&mut self, ifindex: u32, device: Device) -> Result<(), TableError> {
        self.devices.set(ifindex, device)
    }

    fn remove(&mut self, ifindex: u32) {
        self.devices.remove(ifindex);
    }

    fn set_vlans(&mut self, vlans: &BTreeMap<Vlan, u32>) -> Result<(), TableError> {
        self.vlans.set_all(vlans)
    }
}
