//! Keeps the datapath itself in shape: programs on every device that should
//! have them, the programs' settings, and a flow table without dead flows.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use proxy_common::{
    config::{Config as Settings, Prefix, Timeouts},
    family::{Family, V4, V6},
    flow::ticks_from_seconds,
};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

use crate::{
    config::NodeConfig,
    dataplane::{
        attach::{self, Mode, Target, clsact::Filters},
        devices::DeviceTable,
        load::{self, Loaded},
        pins::Pins,
        sweep::{self, Swept},
    },
    devices::{self, Hooked, Surroundings, netlink::Netlink},
    model::Node,
};

/// Time between two sweeps of the flow tables.
const SWEEP: Duration = Duration::from_secs(5);
/// The same while a flow table is nearly full.
const SWEEP_PRESSED: Duration = Duration::from_secs(1);
/// How long changes of devices are collected before they are looked at. A
/// device that comes up changes several times at once.
const SETTLE: Duration = Duration::from_millis(5);
/// How long to wait after a failure to list devices.
const RETRY: Duration = Duration::from_secs(1);

/// Idle times of flows. TCP's are those that kube-proxy sets for conntrack
/// (S82) or conntrack's own; UDP's are conntrack's.
fn timeouts() -> Timeouts {
    Timeouts {
        tcp_established: ticks_from_seconds(24 * 3600),
        tcp_opening: ticks_from_seconds(60),
        tcp_closing: ticks_from_seconds(60),
        other_replied: ticks_from_seconds(120),
        other_unreplied: ticks_from_seconds(30),
        pressed: ticks_from_seconds(2),
    }
}

/// The keeper of one node's datapath.
pub struct Keeper {
    loaded: Loaded,
    pins: Pins,
    mode: Mode,
    filters: Filters,
    config: NodeConfig,
    flows: u32,
    table: DeviceTable,
    hooked: BTreeMap<u32, Hooked>,
    netlink: Netlink,
    node: watch::Receiver<Option<Node>>,
}

impl Keeper {
    /// Takes over a loaded datapath and puts its programs on all devices.
    pub async fn start(
        loaded: Loaded,
        pins: Pins,
        mode: Mode,
        config: NodeConfig,
        flows: u32,
        node: watch::Receiver<Option<Node>>,
    ) -> anyhow::Result<Self> {
        let table = DeviceTable::open(&pins)?;
        let netlink = Netlink::open()?;
        let mut keeper = Self {
            loaded,
            pins,
            mode,
            filters: Filters::open().context("open a netlink socket")?,
            config,
            flows,
            table,
            hooked: BTreeMap::new(),
            netlink,
            node,
        };
        keeper.forget_other_namespace().await;
        keeper.write_settings([Swept::default(); 2]);
        keeper.forget_gone_devices().await?;
        keeper.follow_devices().await?;
        // Now that no device uses the old ones any more.
        load::pin_programs(&mut keeper.loaded.ebpf, &keeper.pins)?;
        info!(devices = keeper.hooked.len(), mode = ?keeper.mode, "programs attached");
        Ok(keeper)
    }

    /// Keeps going until polled no more.
    pub async fn run(mut self) {
        let mut sweep_at = Instant::now() + SWEEP;
        loop {
            tokio::select! {
                more = self.netlink.changed() => {
                    if !more {
                        warn!("netlink connection lost; changes of devices go unnoticed until a restart");
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(SETTLE).await;
                    self.follow_or_log().await;
                }
                changed = self.node.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    self.node.mark_unchanged();
                    self.follow_or_log().await;
                }
                () = tokio::time::sleep_until(sweep_at) => {
                    sweep_at = Instant::now() + self.sweep();
                }
            }
        }
    }

    async fn follow_or_log(&mut self) {
        if let Err(error) = self.follow_devices().await {
            warn!("cannot follow the network devices: {error:#}");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Brings programs and settings to where the devices are now.
    async fn follow_devices(&mut self) -> anyhow::Result<()> {
        let links = self.netlink.links().await?;
        let addresses = self.netlink.addresses().await?;
        let node = self.node.borrow().clone();
        let wanted = devices::hooked(
            &links,
            &addresses,
            &Surroundings {
                detector: &self.config.local_detector,
                node_v4: node.as_ref().and_then(Node::ip::<V4>),
                node_v6: node.as_ref().and_then(Node::ip::<V6>),
            },
        );
        self.write_detector(node.as_ref());
        let present = |ifindex: u32| links.iter().find(|link| link.ifindex == ifindex);
        let unwanted: Vec<_> = self
            .hooked
            .keys()
            .filter(|ifindex| !wanted.contains_key(ifindex))
            .copied()
            .collect();
        for ifindex in unwanted {
            let name = present(ifindex).map(|link| link.name.clone());
            self.unhook(ifindex, name.as_deref()).await;
        }
        for (ifindex, hooked) in wanted {
            self.hook(ifindex, hooked).await;
        }
        Ok(())
    }

    async fn hook(&mut self, ifindex: u32, wanted: Hooked) {
        let current = self.hooked.get(&ifindex);
        if current == Some(&wanted) {
            return;
        }
        if current.map(|hooked| hooked.device) != Some(wanted.device)
            && let Err(error) = self.table.set(ifindex, wanted.device)
        {
            let error = anyhow::Error::new(error);
            warn!(
                device = wanted.name,
                "cannot describe the device to the programs: {error:#}"
            );
            return;
        }
        if current.is_none() {
            let target = Target {
                name: &wanted.name,
                ifindex,
                layer3: wanted.layer3(),
            };
            let attached = attach::attach(
                &mut self.loaded.ebpf,
                &self.pins,
                &self.filters,
                self.mode,
                &target,
            );
            if let Err(error) = attached.await {
                // A device that went away meanwhile is no news; the next
                // change of devices tries again in any case.
                let error = anyhow::Error::new(error);
                warn!(
                    device = wanted.name,
                    "cannot attach the programs: {error:#}"
                );
                return;
            }
            debug!(device = wanted.name, ifindex, "programs attached");
        }
        self.hooked.insert(ifindex, wanted);
    }

    /// Takes the programs off a device, which has a name if it still exists.
    async fn unhook(&mut self, ifindex: u32, name: Option<&str>) {
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
        self.hooked.remove(&ifindex);
        debug!(ifindex, name, "programs taken off");
    }

    /// Removes pins and table entries of devices that went while no agent ran.
    async fn forget_gone_devices(&mut self) -> anyhow::Result<()> {
        let links = self.netlink.links().await?;
        let is_gone = |ifindex: &u32| links.iter().all(|link| link.ifindex != *ifindex);
        let known: Vec<u32> = self
            .table
            .read()?
            .into_iter()
            .map(|(ifindex, _)| ifindex)
            .chain(attach::pinned_devices(&self.pins))
            .filter(is_gone)
            .collect();
        for ifindex in known {
            self.unhook(ifindex, None).await;
        }
        Ok(())
    }

    /// Pins of another network namespace name other devices: the node is a
    /// container that was made anew.
    async fn forget_other_namespace(&mut self) {
        let cookie = netns_cookie();
        let Some(mut settings) = self.settings() else {
            return;
        };
        if settings.netns_cookie != cookie {
            for ifindex in attach::pinned_devices(&self.pins) {
                self.unhook(ifindex, None).await;
            }
            settings.netns_cookie = cookie;
            self.set_settings(settings);
        }
    }

    /// Removes idle flows; returns when to do it again.
    fn sweep(&mut self) -> Duration {
        match sweep::sweep(&mut self.loaded.ebpf) {
            Ok(swept) => {
                self.write_settings(swept);
                if swept.iter().any(|swept| self.is_pressed(*swept)) {
                    SWEEP_PRESSED
                } else {
                    SWEEP
                }
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                warn!("cannot sweep the flow tables: {error:#}");
                SWEEP
            }
        }
    }

    /// Whether a flow table is more than 80 % full.
    fn is_pressed(&self, swept: Swept) -> bool {
        swept.flows > self.flows / 5 * 4
    }

    fn settings(&self) -> Option<Settings> {
        self.loaded.config.get(0)
    }

    fn set_settings(&mut self, settings: Settings) {
        if self.settings() != Some(settings) {
            // One row, which is there.
            let _ = self.loaded.config.set(0, settings);
        }
    }

    fn write_settings(&mut self, swept: [Swept; 2]) {
        let Some(mut settings) = self.settings() else {
            return;
        };
        settings.timeouts = timeouts();
        let pressed = [Settings::PRESSED_V4, Settings::PRESSED_V6];
        for (flag, swept) in pressed.into_iter().zip(swept) {
            set_flag(&mut settings.flags, flag, self.is_pressed(swept));
        }
        self.set_settings(settings);
    }

    /// Tells the programs which clients are pods (S68).
    fn write_detector(&mut self, node: Option<&Node>) {
        let Some(mut settings) = self.settings() else {
            return;
        };
        let detector = &self.config.local_detector;
        let v4 = detector.prefix::<V4>(node);
        let v6 = detector.prefix::<V6>(node);
        let flags = &mut settings.flags;
        set_flag(flags, Settings::MASQUERADE_ALL, self.config.masquerade_all);
        set_flag(flags, Settings::DETECT_PREFIX_V4, v4.is_some());
        set_flag(flags, Settings::DETECT_PREFIX_V6, v6.is_some());
        let by_device = detector.is_pod_device("").is_some();
        set_flag(flags, Settings::DETECT_DEVICE, by_device);
        settings.pods_v4 = v4.map_or_else(Prefix::default, |(ip, length)| Prefix {
            addr: V4::addr(ip),
            mask: V4::addr(
                u32::MAX
                    .checked_shl(32 - u32::from(length))
                    .unwrap_or(0)
                    .into(),
            ),
        });
        settings.pods_v6 = v6.map_or_else(Prefix::default, |(ip, length)| Prefix {
            addr: V6::addr(ip),
            mask: V6::addr(
                u128::MAX
                    .checked_shl(128 - u32::from(length))
                    .unwrap_or(0)
                    .into(),
            ),
        });
        self.set_settings(settings);
    }
}

fn set_flag(flags: &mut u32, flag: u32, on: bool) {
    if on {
        *flags |= flag;
    } else {
        *flags &= !flag;
    }
}

/// `SO_NETNS_COOKIE` of this process: names its network namespace (Linux 5.14;
/// 0 before).
pub fn netns_cookie() -> u64 {
    use std::os::fd::AsRawFd as _;

    let Ok(socket) =
        std::net::UdpSocket::bind(("::", 0)).or_else(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)))
    else {
        return 0;
    };
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: a valid socket, and a buffer of the length that is stated.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { cookie } else { 0 }
}
