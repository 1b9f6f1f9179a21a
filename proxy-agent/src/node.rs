//! Keeps the datapath itself in shape: programs on every device that should
//! have them, the node's own addresses, the programs' settings, and a flow
//! table without dead flows.

pub mod addresses;
pub mod devices;
pub mod flow_sweeper;
pub mod netlink;
mod pins;
pub mod service_cidrs;
pub mod settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context as _;
use ipnet::IpNet;
use proxy_common::{
    counter::Counter,
    device::Device,
    family::{V4, V6},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use self::{
    devices::{Described, MainRoutes},
    flow_sweeper::{SWEEP, advice::Troubles},
    netlink::{Netlink, News},
};
use crate::{
    config::NodeConfig,
    dataplane::{
        attach::{Mode, clsact::Filters},
        counters::Counters,
        devices::DeviceTable,
        held::HeldMaps,
        load::{self, Loaded},
        local_addrs::LocalAddrTable,
        pins::Pins,
        sweep::Swept,
        vlans::VlanTable,
    },
    health::serve::Addresses,
    metrics::Metrics,
    model::Node,
    predecessors::Predecessors,
};

/// How often it is asked whether a flow table is full, which cannot wait for the next
/// sweep.
const LOOK: Duration = Duration::from_millis(250);
/// How long changes of devices are collected before they are looked at. A
/// device that comes up changes several times at once.
const SETTLE: Duration = Duration::from_millis(5);
/// How long to wait after a failure to follow devices or addresses.
const RETRY: Duration = Duration::from_secs(1);
/// How long a new agent waits for the Node object where it must be known to
/// tell which addresses take NodePorts, or which clients are pods. What an
/// earlier agent wrote of the addresses holds until then.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// How a datapath is kept.
#[derive(Clone, Debug)]
pub struct Options {
    pub mode: Mode,
    pub node: NodeConfig,
    /// Time between two comparisons of `LOCAL_ADDRS` with what it should be.
    pub audit: Duration,
}

/// What the controller follows of the cluster.
#[derive(Clone, Debug)]
pub struct NodeInputs {
    /// This node's object.
    pub node: watch::Receiver<Option<Node>>,
    /// Where cluster IPs come from, once that is known.
    pub service_ranges: watch::Receiver<Option<BTreeSet<IpNet>>>,
}

/// Keeps one node's datapath in step with its devices, addresses and settings.
pub struct NodeController {
    loaded: Loaded,
    pins: Pins,
    held: HeldMaps,
    /// Programs of other layout versions that ours have not replaced yet.
    predecessors: Option<Predecessors>,
    mode: Mode,
    filters: Filters,
    config: NodeConfig,
    audit: Duration,
    table: DeviceTable,
    vlans: VlanTable,
    /// Devices with programs.
    attached: BTreeMap<u32, Described>,
    /// Devices for which something could not be done, and what.
    refused: BTreeMap<u32, String>,
    /// How many of those the table has no room for, and how many of that were
    /// told of.
    without_room: usize,
    told_without_room: usize,
    /// When to try those again.
    try_again_at: Option<Instant>,
    /// Bridges, as described to the programs on their ports.
    bridges: BTreeMap<u32, Device>,
    main_routes: MainRoutes,
    local_v4: LocalAddrTable<V4>,
    local_v6: LocalAddrTable<V6>,
    netlink: Netlink,
    /// Addresses that take NodePorts one by one, for health check ports.
    listen: watch::Sender<Addresses>,
    node: watch::Receiver<Option<Node>>,
    /// This node's object as it was last seen: its address takes NodePorts even
    /// if the object is gone.
    seen_node: Option<Node>,
    service_ranges: watch::Receiver<Option<BTreeSet<IpNet>>>,
    /// Service ranges that the programs could not be told of.
    left_out: Vec<IpNet>,
    /// How many local prefixes of each family the tables have no room for.
    local_left_out: [usize; 2],
    /// Why no client counts as a pod, as it was last said.
    gap: Option<&'static str>,
    metrics: Metrics,
    counters: Counters,
    /// Flows refused for want of room, as far as that is known here.
    refused_for_room: u64,
    /// Sweeps that are to follow at once.
    sweeps_in_a_row: u32,
    troubles: Troubles,
    started: Instant,
    /// When to follow devices and addresses again although nothing changed.
    retry_at: Option<Instant>,
    /// The last thing that went wrong with that.
    logged: Option<String>,
}

impl NodeController {
    /// Takes over a loaded datapath and puts its programs on all devices.
    pub async fn start(
        loaded: Loaded,
        pins: Pins,
        options: Options,
        news: NodeInputs,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let table = DeviceTable::open(&pins)?;
        let vlans = VlanTable::open(&pins)?;
        let counters = Counters::open(&pins).context("open table COUNTERS")?;
        let mut controller = Self {
            refused_for_room: counters.of(Counter::FlowTableFull),
            sweeps_in_a_row: 0,
            counters,
            troubles: Troubles::default(),
            loaded,
            local_v4: LocalAddrTable::open(&pins)?,
            local_v6: LocalAddrTable::open(&pins)?,
            held: HeldMaps::open(&pins)?,
            predecessors: None,
            pins,
            mode: options.mode,
            filters: Filters::open().context("open a netlink socket")?,
            config: options.node,
            audit: options.audit,
            table,
            vlans,
            attached: BTreeMap::new(),
            refused: BTreeMap::new(),
            without_room: 0,
            told_without_room: 0,
            try_again_at: None,
            bridges: BTreeMap::new(),
            main_routes: MainRoutes::new(),
            netlink: Netlink::open()?,
            listen: watch::Sender::default(),
            node: news.node,
            seen_node: None,
            service_ranges: news.service_ranges,
            left_out: Vec::new(),
            local_left_out: [0; 2],
            gap: None,
            metrics,
            started: Instant::now(),
            retry_at: None,
            logged: None,
        };
        controller.forget_other_namespace().await;
        controller.write_settings([Swept::default(); 2]);
        controller.forget_gone_devices().await?;
        if let Err(error) = controller.follow_local_addrs().await {
            // Cluster IPs work without.
            controller.failed(&error);
        }
        controller.follow_devices().await?;
        // Now that no device uses the old ones any more.
        load::pin_programs(&mut controller.loaded.ebpf, &controller.pins)?;
        info!(devices = controller.attached.len(), mode = ?controller.mode, "programs attached");
        Ok(controller)
    }

    /// Where health check ports are opened, whenever that changes.
    pub fn listen(&self) -> watch::Receiver<Addresses> {
        self.listen.subscribe()
    }

    /// The programs and tables, for those who use others of them.
    pub fn loaded(&mut self) -> &mut Loaded {
        &mut self.loaded
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
            predecessors.replace(|ifindex| self.refused.contains_key(&ifindex));
            if predecessors.is_empty() {
                self.predecessors = None;
            }
        }
    }

    /// Keeps going until polled no more.
    pub async fn run(&mut self) {
        let mut sweep_at = Instant::now() + SWEEP;
        let mut look_at = Instant::now() + LOOK;
        let mut audit_at = self.started + self.audit.min(NODE_PATIENCE);
        loop {
            let wake_at = self
                .follow_at()
                .fold(sweep_at.min(audit_at).min(look_at), Instant::min);
            tokio::select! {
                news = self.netlink.changed() => {
                    self.main_routes.touch();
                    match news {
                        // Read when it is time to.
                        News::Routes => {}
                        News::Devices => {
                            sleep(SETTLE).await;
                            self.follow().await;
                        }
                        News::Lost => {
                            self.reconnect().await;
                            self.follow().await;
                        }
                    }
                }
                changed = self.node.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    self.node.mark_unchanged();
                    self.follow().await;
                }
                changed = self.service_ranges.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    self.service_ranges.mark_unchanged();
                    self.write_service_ranges();
                }
                () = sleep_until(wake_at) => {}
            }
            let now = Instant::now();
            if now >= look_at {
                look_at = now + LOOK;
                if self.is_newly_full() {
                    sweep_at = now;
                }
            }
            if now >= sweep_at {
                sweep_at = now + self.sweep();
                self.keep_pins().await;
                self.replace_predecessors();
                self.tell_of_pods();
            }
            if now >= audit_at {
                audit_at = now + self.audit;
                self.follow().await;
                self.audit_devices().await;
                if let Err(error) = self.audit_local_addrs().await {
                    self.failed(&error);
                }
            }
            if self.follow_at().any(|at| now >= at) {
                self.follow().await;
            }
        }
    }

    /// When devices and addresses are to be followed again, although nobody
    /// says that they changed.
    fn follow_at(&self) -> impl Iterator<Item = Instant> {
        [self.retry_at, self.try_again_at, self.main_routes.due()]
            .into_iter()
            .flatten()
    }

    /// Brings programs, settings and addresses to where they should be now.
    async fn follow(&mut self) {
        // One failing must not keep the other from being followed.
        let devices = self.follow_devices().await;
        let addresses = self.follow_local_addrs().await;
        match devices.and(addresses) {
            Ok(()) => {
                self.retry_at = None;
                self.logged = None;
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Sees to it that what failed is tried again in a while; says so once.
    fn failed(&mut self, error: &anyhow::Error) {
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
}
