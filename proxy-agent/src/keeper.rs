//! Keeps the datapath itself in shape: programs on every device that should
//! have them, the node's own addresses, the programs' settings, and a flow
//! table without dead flows.

mod local_addrs;
mod settings;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use proxy_common::family::{V4, V6};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    config::NodeConfig,
    dataplane::{
        attach::{self, Mode, Target, clsact::Filters},
        devices::DeviceTable,
        load::{self, Loaded},
        local_addrs::LocalAddrTable,
        pins::Pins,
        sweep::{self, Swept},
    },
    devices::{self, Hooked, Surroundings, netlink::Netlink},
    metrics::Metrics,
    model::Node,
};

/// Time between two sweeps of the flow tables.
const SWEEP: Duration = Duration::from_secs(5);
/// The same while a flow table is nearly full.
const SWEEP_PRESSED: Duration = Duration::from_secs(1);
/// How long changes of devices are collected before they are looked at. A
/// device that comes up changes several times at once.
const SETTLE: Duration = Duration::from_millis(5);
/// How long to wait after a failure to follow devices or addresses.
const RETRY: Duration = Duration::from_secs(1);
/// How long a new agent waits for the Node object where it must be known to
/// tell which addresses take NodePorts. What an earlier agent wrote holds
/// until then.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// How a datapath is kept.
#[derive(Clone, Debug)]
pub struct Options {
    pub mode: Mode,
    pub node: NodeConfig,
    /// Size of each flow table.
    pub flows: u32,
    /// Time between two comparisons of `LOCAL_ADDRS` with what it should be.
    pub audit: Duration,
}

/// The keeper of one node's datapath.
pub struct Keeper {
    loaded: Loaded,
    pins: Pins,
    mode: Mode,
    filters: Filters,
    config: NodeConfig,
    flows: u32,
    audit: Duration,
    table: DeviceTable,
    hooked: BTreeMap<u32, Hooked>,
    local_v4: LocalAddrTable<V4>,
    local_v6: LocalAddrTable<V6>,
    netlink: Netlink,
    node: watch::Receiver<Option<Node>>,
    metrics: Metrics,
    started: Instant,
    /// When to follow devices and addresses again although nothing changed.
    retry_at: Option<Instant>,
    /// The last thing that went wrong with that.
    logged: Option<String>,
}

impl Keeper {
    /// Takes over a loaded datapath and puts its programs on all devices.
    pub async fn start(
        loaded: Loaded,
        pins: Pins,
        options: Options,
        node: watch::Receiver<Option<Node>>,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let table = DeviceTable::open(&pins)?;
        let mut keeper = Self {
            loaded,
            local_v4: LocalAddrTable::open(&pins)?,
            local_v6: LocalAddrTable::open(&pins)?,
            pins,
            mode: options.mode,
            filters: Filters::open().context("open a netlink socket")?,
            config: options.node,
            flows: options.flows,
            audit: options.audit,
            table,
            hooked: BTreeMap::new(),
            netlink: Netlink::open()?,
            node,
            metrics,
            started: Instant::now(),
            retry_at: None,
            logged: None,
        };
        keeper.forget_other_namespace().await;
        keeper.write_settings([Swept::default(); 2]);
        keeper.forget_gone_devices().await?;
        keeper.follow_local_addrs().await?;
        keeper.follow_devices().await?;
        // Now that no device uses the old ones any more.
        load::pin_programs(&mut keeper.loaded.ebpf, &keeper.pins)?;
        info!(devices = keeper.hooked.len(), mode = ?keeper.mode, "programs attached");
        Ok(keeper)
    }

    /// Keeps going until polled no more.
    pub async fn run(mut self) {
        let mut sweep_at = Instant::now() + SWEEP;
        let mut audit_at = self.started + self.audit.min(NODE_PATIENCE);
        loop {
            let wake_at = self
                .retry_at
                .map_or(sweep_at, |at| at.min(sweep_at))
                .min(audit_at);
            tokio::select! {
                more = self.netlink.changed() => {
                    if !more {
                        self.reconnect().await;
                    }
                    sleep(SETTLE).await;
                    self.follow().await;
                }
                changed = self.node.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    self.node.mark_unchanged();
                    self.follow().await;
                }
                () = sleep_until(wake_at) => {}
            }
            let now = Instant::now();
            if now >= sweep_at {
                sweep_at = now + self.sweep();
            }
            if now >= audit_at {
                audit_at = now + self.audit;
                let audited = self.audit_local_addrs().await;
                self.note(audited);
            } else if self.retry_at.is_some_and(|at| now >= at) {
                self.follow().await;
            }
        }
    }

    /// Brings programs, settings and addresses to where they should be now.
    async fn follow(&mut self) {
        // One failing must not keep the other from being followed.
        let devices = self.follow_devices().await;
        let addresses = self.follow_local_addrs().await;
        self.note(devices.and(addresses));
    }

    /// Sees to it that what failed is tried again in a while; says so once.
    fn note(&mut self, done: anyhow::Result<()>) {
        let Err(error) = done else {
            self.retry_at = None;
            self.logged = None;
            return;
        };
        self.retry_at = Some(Instant::now() + RETRY);
        let message = format!("{error:#}");
        if self.logged.as_ref() != Some(&message) {
            warn!("cannot follow the node's devices and addresses, trying again: {message}");
            self.logged = Some(message);
        }
    }

    /// Opens netlink anew when the kernel or a fault closed the connection.
    async fn reconnect(&mut self) {
        warn!("netlink connection lost, opening another");
        loop {
            match Netlink::open() {
                Ok(netlink) => {
                    self.netlink = netlink;
                    return;
                }
                Err(error) => {
                    debug!("cannot open netlink: {:#}", anyhow::Error::new(error));
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Brings programs and their settings to where the devices are now.
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
