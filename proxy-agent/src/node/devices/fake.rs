//! Devices' hooks and tables in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use proxy_common::{device::Device, vlan::Vlan};

use super::{Attach, Tables};
use crate::dataplane::{
    attach::{AttachError, Target},
    tables::TableError,
};

/// The devices of a kernel, by ifindex.
#[derive(Debug, Default)]
pub(in crate::node) struct FakeHooks {
    /// Names of those that have the programs.
    pub served: BTreeMap<u32, String>,
    /// Those whose hooks somebody else holds.
    pub taken: BTreeSet<u32>,
    /// Those that went, whatever was listed.
    pub gone: BTreeSet<u32>,
    /// Those with pins.
    pub pinned: BTreeSet<u32>,
}

impl Attach for FakeHooks {
    async fn attach(&mut self, target: &Target<'_>) -> Result<bool, AttachError> {
        if self.gone.contains(&target.ifindex) {
            return Err(AttachError::Folder {
                path: PathBuf::new(),
                source: io::Error::from_raw_os_error(libc::ENODEV),
            });
        }
        if self.taken.contains(&target.ifindex) {
            return Err(AttachError::Taken("other".to_owned()));
        }
        self.pinned.insert(target.ifindex);
        let before = self.served.insert(target.ifindex, target.name.to_owned());
        Ok(before.is_some())
    }

    async fn detach(&mut self, target: &Target<'_>) -> Result<(), AttachError> {
        self.forget(target.ifindex)
    }

    fn forget(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.pinned.remove(&ifindex);
        self.served.remove(&ifindex);
        Ok(())
    }

    fn kept(&self) -> BTreeMap<u32, usize> {
        self.pinned.iter().map(|ifindex| (*ifindex, 2)).collect()
    }
}

/// `DEVICES` and `VLANS` with room for some devices.
#[derive(Debug)]
pub(in crate::node) struct FakeTables {
    pub room: usize,
    pub devices: BTreeMap<u32, Device>,
}

impl Tables for FakeTables {
    fn room(&self) -> u32 {
        u32::try_from(self.room).expect("small")
    }

    fn rows(&self) -> Result<Vec<(u32, Device)>, TableError> {
        let rows = self.devices.iter();
        Ok(rows.map(|(ifindex, device)| (*ifindex, *device)).collect())
    }

    fn get(&self, ifindex: u32) -> Option<Device> {
        self.devices.get(&ifindex).copied()
    }

    fn set(&mut self, ifindex: u32, device: Device) -> Result<(), TableError> {
        if self.devices.len() >= self.room && !self.devices.contains_key(&ifindex) {
            return Err(TableError::Full {
                table: "DEVICES".to_owned(),
                entries: self.room(),
            });
        }
        self.devices.insert(ifindex, device);
        Ok(())
    }

    fn remove(&mut self, ifindex: u32) {
        self.devices.remove(&ifindex);
    }

    fn set_vlans(&mut self, _: &BTreeMap<Vlan, u32>) -> Result<(), TableError> {
        Ok(())
    }
}
