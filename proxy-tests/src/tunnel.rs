//! A host at the other end of a device without Ethernet header: a tun device
//! on the node, as VPNs have it, and one in the host, with threads of the test
//! that carry packets from one to the other.

use std::{
    ffi::c_short,
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{Read, Write as _},
    ops::Deref,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use libc::{IFF_NO_PI, IFF_TUN, TUNSETIFF};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    addressing::host_length,
    family::Family,
    host::{Addresses, Host},
    netns::Netns,
    node::Node,
};

/// The device in the host.
const DEVICE: &str = "tun0";
/// Interval at which a carrier looks whether it is to stop, in milliseconds.
const STOP_WITHIN: u8 = 50;

/// A host behind a tun device of a node, which is its way to everywhere.
/// Dereferences to its [`Host`].
#[derive(Debug)]
pub struct TunnelHost {
    host: Host,
    node_name: String,
    node_device: String,
    stopping: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl TunnelHost {
    /// Joins a new host called `name`, in the namespace `netns`, to `node`.
    pub fn start(node: &Node, name: &str, netns: &str, addresses: Addresses) -> Result<Self> {
        let host = Host::new(
            name,
            Netns::create(netns)?,
            None,
            addresses,
            node.topology().families,
        )?;
        let node_device = format!("tun-{name}");
        let ends = [
            node.run(|| open(&node_device)).context("on the node")?,
            host.run(|| open(DEVICE)).context("in the host")?,
        ];
        let mut on_node = format!("link set {node_device} up\n");
        let mut in_host = format!("link set {DEVICE} up\n");
        for address in addresses.list() {
            let length = host_length(Family::of(address));
            writeln!(on_node, "route add {address}/{length} dev {node_device}")?;
            writeln!(in_host, "addr add {address}/{length} dev {DEVICE} nodad")?;
            let default = match Family::of(address) {
                Family::V4 => "0.0.0.0/0",
                Family::V6 => "::/0",
            };
            writeln!(in_host, "route add {default} dev {DEVICE}")?;
        }
        node.ip(&on_node)?;
        host.ip(&in_host)?;

        let stopping = Arc::new(AtomicBool::new(false));
        let ends = ends.map(Arc::new);
        let carriers = [(0, 1), (1, 0)].map(|(from, to)| {
            let (from, to) = (Arc::clone(&ends[from]), Arc::clone(&ends[to]));
            let stopping = Arc::clone(&stopping);
            thread::spawn(move || carry(&from, &to, &stopping))
        });
        Ok(Self {
            host,
            node_name: node.name().to_owned(),
            node_device,
            stopping,
            carriers: carriers.into(),
        })
    }

    /// The `nodeName` of its endpoints.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The node's tun device.
    pub fn node_device(&self) -> &str {
        &self.node_device
    }
}

impl Deref for TunnelHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Drop for TunnelHost {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// Makes a tun device in the calling thread's namespace. It goes when the file
/// is closed.
fn open(device: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: plain integers; zero is a valid value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = c_short::try_from(IFF_TUN | IFF_NO_PI)?;
    // SAFETY: the kernel reads and writes an `ifreq`, which outlives the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if outcome != 0 {
        return Err(std::io::Error::last_os_error()).context(format!("tun device {device}"));
    }
    Ok(file)
}

fn carry(from: &File, to: &File, stopping: &AtomicBool) {
    let (mut from, mut to) = (from, to);
    let mut packet = vec![0; 1 << 16];
    while !stopping.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(STOP_WITHIN)).is_ok_and(|count| count > 0)
            && let Ok(length) = from.read(&mut packet)
        {
            // A packet that the other end does not take is lost, as on a wire.
            let _ = to.write(&packet[..length]);
        }
    }
}
