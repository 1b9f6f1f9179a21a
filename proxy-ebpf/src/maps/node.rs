//! The node, as the agent tells of it: settings, devices, VLANs, and cgroups that are left
//! alone.

use crate::maps::{MMAPABLE, ON_DEMAND, SMALL};
use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use proxy_common::{config::Config, device::Device, vlan::Vlan};

#[btf_map]
static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();

#[btf_map]
static DEVICES: HashMap<u32, Device, SMALL, ON_DEMAND> = HashMap::new();
#[btf_map]
static VLANS: HashMap<Vlan, u32, SMALL, ON_DEMAND> = HashMap::new();

/// Ids of the cgroups whose processes the socket programs leave alone.
#[btf_map]
static EXCEPTIONS: HashMap<u64, u32, SMALL, ON_DEMAND> = HashMap::new();

/// The agent's settings.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// The description of the device with this ifindex.
#[inline(always)]
pub fn device(ifindex: u32) -> Option<&'static Device> {
    // SAFETY: only the agent writes this map, field by field equal or new; a
    // stale read gives the device's former addresses.
    unsafe { DEVICES.get(ifindex) }
}

/// The uplink that takes the packets of a VLAN.
#[inline(always)]
pub fn uplink_of(vlan: &Vlan) -> Option<u32> {
    // SAFETY: copied at once; a stale read gives the former uplink.
    unsafe { VLANS.get(vlan) }.copied()
}

/// Returns whether the socket programs leave the processes of this cgroup alone.
#[inline(always)]
pub fn is_exception(cgroup: u64) -> bool {
    EXCEPTIONS.get_ptr(cgroup).is_some()
}
