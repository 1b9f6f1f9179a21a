//! Keeps the datapath itself in shape: programs on every device that should
//! have them, the node's own addresses, the programs' settings, and a flow
//! table without dead flows.
//!
//! Each concern has a controller. Pure functions decide what should be, the
//! controller brings the datapath there, and [`NodeController`] wakes it:
//!
//! ```text
//! netlink ─┬─► devices       ─► DEVICES, VLANS, attached programs
//! Node ────┼─► addresses     ─► LOCAL_ADDRS, health check ports
//!          └─► settings      ─► CONFIG
//! CIDRs ─────► service_cidrs ─► CONFIG
//! timers ──┬─► flow_sweeper  ─► FLOWS, MASQ, SHARES
//!          └─► pins          ─► what is pinned below the bpf root
//! ```

pub(crate) mod addresses;
mod attempts;
mod datapath;
pub(crate) mod devices;
pub mod flow_sweeper;
pub(crate) mod netlink;
mod pins;
mod routes;
pub(crate) mod service_cidrs;
pub mod settings;
mod start;
mod watch;

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use proxy_common::family::{V4, V6};
use tokio::{
    sync::watch::{Receiver, Sender},
    time::{Instant, sleep_until},
};

use self::{
    addresses::AddressController,
    attempts::Attempts,
    datapath::Datapath,
    devices::{DesiredDevice, DeviceController, Inputs, KernelTables},
    flow_sweeper::{FlowSweeper, SWEEP},
    netlink::Netlink,
    pins::PinController,
    service_cidrs::ServiceCidrController,
    settings::SettingsController,
    watch::Watch,
};
use crate::{
    config::NodeConfig,
    dataplane::{attach::Mode, load::Loaded, local_addrs::LocalAddrTable},
    health::{Health, serve::Addresses, state::Subject},
    model::Node,
    predecessors::Predecessors,
};

/// Interval at which full flow tables are looked for; their sweep cannot wait for the next
/// regular one.
const LOOK: Duration = Duration::from_millis(250);
/// Time that a new agent waits for the Node object if it needs it to tell which
/// addresses take NodePorts, or which clients are pods. Until then, the addresses
/// written by an earlier agent apply.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// Options of the node controller.
#[derive(Clone, Debug)]
pub struct Options {
    pub mode: Mode,
    pub node: NodeConfig,
    /// Time between two comparisons of `LOCAL_ADDRS` with what it should be.
    pub audit: Duration,
    /// Told where health check ports are to be opened.
    pub listen: Sender<Addresses>,
    /// Whether this process mounted the bpf file system.
    pub mounted_bpf: bool,
    /// Told what is wrong with the datapath.
    pub health: Health,
}

/// The cluster state that the controller follows.
#[derive(Clone, Debug)]
pub struct NodeInputs {
    /// This node's object.
    pub node: Receiver<Option<Node>>,
    /// The prefixes that cluster IPs come from; `None` before they are known.
    pub service_ranges: Receiver<Option<BTreeSet<IpNet>>>,
    /// The state on disk is served.
    pub stale: Receiver<bool>,
}

/// Keeps one node's datapath in step with its devices, addresses and settings.
pub struct NodeController {
    datapath: Datapath,
    inputs: NodeInputs,
    watch: Watch<Netlink>,
    settings: SettingsController,
    service_cidrs: ServiceCidrController,
    devices: DeviceController<KernelTables>,
    addresses: AddressController<LocalAddrTable<V4>, LocalAddrTable<V6>>,
    sweeper: FlowSweeper,
    pins: PinController,
    /// Programs of other layout versions that ours have not replaced yet.
    predecessors: Option<Predecessors>,
    audit: Duration,
    health: Health,
    started: Instant,
    attempts: Attempts,
}

impl NodeController {
    /// The loaded programs and tables, for the socket LB.
    pub fn loaded(&mut self) -> &mut Loaded {
        &mut self.datapath.loaded
    }

    /// Replaces programs of other layout versions, now that ours are in place.
    pub fn replace(&mut self, predecessors: Predecessors) {
        // Of flows that were opened since the tables were complete.
        predecessors.carry_flows_over();
        self.predecessors = Some(predecessors);
        self.replace_predecessors();
    }

    fn replace_predecessors(&mut self) {
        if let Some(predecessors) = &mut self.predecessors {
            predecessors.replace(|ifindex| self.devices.is_refused(ifindex));
            if predecessors.is_empty() {
                self.predecessors = None;
            }
        }
    }

    /// Restores the pins a last time, and logs what becomes of forwarding when this agent
    /// has ended.
    pub async fn leave(&mut self) {
        self.pins.leave(&mut self.datapath, &mut self.devices).await;
    }

    /// Keeps going until polled no more.
    pub async fn run(&mut self) {
        let mut sweep_at = Instant::now() + SWEEP;
        let mut look_at = Instant::now() + LOOK;
        let mut audit_at = self.started + self.audit.min(NODE_PATIENCE);
        loop {
            let wake_at = self
                .sync_at()
                .fold(sweep_at.min(audit_at).min(look_at), Instant::min);
            tokio::select! {
                event = self.watch.changed() => {
                    if self.watch.take(event).await {
                        self.sync().await;
                    }
                }
                changed = self.inputs.node.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    self.inputs.node.mark_unchanged();
                    self.sync().await;
                }
                changed = self.inputs.service_ranges.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    self.inputs.service_ranges.mark_unchanged();
                    self.sync_service_cidrs();
                }
                changed = self.inputs.stale.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    let stale = *self.inputs.stale.borrow_and_update();
                    settings::set_stale(&mut self.datapath.loaded.config, stale);
                }
                () = sleep_until(wake_at) => {}
            }
            let now = Instant::now();
            if now >= look_at {
                look_at = now + LOOK;
                if self.sweeper.is_newly_full(&self.datapath.loaded.config) {
                    sweep_at = now;
                }
            }
            if now >= sweep_at {
                sweep_at = now + self.sweeper.sweep(&mut self.datapath.loaded);
                self.pins.keep(&mut self.datapath, &mut self.devices).await;
                self.replace_predecessors();
                self.settings
                    .tell_of_pods(self.inputs.node.borrow().as_ref());
            }
            if now >= audit_at {
                audit_at = now + self.audit;
                self.sync().await;
                self.audit().await;
            }
            if self.sync_at().any(|at| now >= at) {
                self.sync().await;
            }
            self.health.tell(Subject::Devices, self.devices.condition());
        }
    }

    /// The times at which devices and addresses are synced again without a notification
    /// of a change.
    fn sync_at(&self) -> impl Iterator<Item = Instant> {
        [self.attempts.due(), self.devices.due(), self.watch.due()]
            .into_iter()
            .flatten()
    }

    /// Brings programs, settings and addresses to where they should be now.
    async fn sync(&mut self) {
        // One failing must not keep the other from being followed.
        let devices = self.sync_devices().await;
        let addresses = self.sync_addresses().await;
        match devices.and(addresses) {
            Ok(()) => self.attempts.succeeded(),
            Err(error) => self.attempts.failed(&error),
        }
    }

    async fn sync_devices(&mut self) -> anyhow::Result<()> {
        // Devices are followed even if routes cannot be; the old ones hold.
        let routes_read = self.watch.refresh_routes().await;
        let links = self.watch.links().await?;
        let addresses = self.watch.addresses().await?;
        let node = self.inputs.node.borrow().clone();
        let row = &mut self.datapath.loaded.config;
        self.settings.set_detector(row, node.as_ref());
        let detector = &self.settings.config().local_detector;
        let inputs = Inputs {
            detector,
            routes: self.watch.routes(),
            pods: &detector.pod_ranges(node.as_ref()),
            node_v4: node.as_ref().and_then(Node::ip::<V4>),
            node_v6: node.as_ref().and_then(Node::ip::<V6>),
        };
        let desired = devices::desired(&links, &addresses, &inputs);
        let shared = desired.values().any(DesiredDevice::has_bridge_mac);
        settings::set_shared_mac(row, shared);
        let attach = &mut self.datapath.attach();
        self.devices.apply(&links, desired, attach).await?;
        Ok(routes_read?)
    }

    async fn sync_addresses(&mut self) -> anyhow::Result<()> {
        let node = self.inputs.node.borrow().clone();
        let network = self.watch.network();
        self.addresses.sync(network, node.as_ref()).await
    }

    /// Writes the prefixes of cluster IPs. Until they are known, those of an earlier agent stay.
    fn sync_service_cidrs(&mut self) {
        if let Some(cidrs) = &*self.inputs.service_ranges.borrow() {
            let row = &mut self.datapath.loaded.config;
            self.service_cidrs.apply(cidrs, row);
        }
    }

    /// Repairs what somebody else changed.
    async fn audit(&mut self) {
        self.devices.audit(&mut self.datapath.attach()).await;
        self.pins.audit(&mut self.datapath, &mut self.devices).await;
        let node = self.inputs.node.borrow().clone();
        let network = self.watch.network();
        if let Err(error) = self.addresses.audit(network, node.as_ref()).await {
            self.attempts.failed(&error);
        }
    }
}
