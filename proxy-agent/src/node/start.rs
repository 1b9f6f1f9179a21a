//! The start: takes over what an earlier agent left.

use anyhow::Context as _;
use tokio::time::Instant;
use tracing::info;

use super::{
    NodeController, NodeInputs, Options,
    addresses::AddressController,
    attempts::Attempts,
    datapath::Datapath,
    devices::{DeviceController, KernelTables},
    flow_sweeper::{self, FlowSweeper},
    netlink::Netlink,
    pins::PinController,
    service_cidrs::ServiceCidrController,
    settings::{self, SettingsController},
    watch::Watch,
};
use crate::{
    dataplane::{
        attach::clsact::Filters,
        counters::Counters,
        held::HeldMaps,
        load::{Loaded, pinned},
        local_addrs::LocalAddrTable,
        pins::Pins,
        sweep::Swept,
    },
    health::state::Subject,
    metrics::Metrics,
    sys,
};

impl NodeController {
    /// Takes over a loaded datapath and puts its programs on all devices.
    pub async fn start(
        loaded: Loaded,
        pins: Pins,
        options: Options,
        inputs: NodeInputs,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let counters = Counters::open(&pins).context("open table COUNTERS")?;
        let mut controller = Self {
            inputs,
            watch: Watch::new(Netlink::open()?),
            service_cidrs: ServiceCidrController::default(),
            devices: DeviceController::new(KernelTables::open(&pins)?),
            addresses: AddressController::new(
                LocalAddrTable::open(&pins)?,
                LocalAddrTable::open(&pins)?,
                options.node.node_port_addresses.clone(),
                options.listen,
                metrics.clone(),
            ),
            settings: SettingsController::new(options.node),
            sweeper: FlowSweeper::new(counters, metrics.clone()),
            pins: PinController::new(
                HeldMaps::open(&pins)?,
                options.mounted_bpf,
                options.health.clone(),
                metrics,
            ),
            predecessors: None,
            audit: options.audit,
            health: options.health,
            started: Instant::now(),
            attempts: Attempts::default(),
            datapath: Datapath {
                loaded,
                pins,
                mode: options.mode,
                filters: Filters::open().context("open a netlink socket")?,
            },
        };
        controller.adopt().await?;
        let stale = *controller.inputs.stale.borrow_and_update();
        settings::set_stale(&mut controller.datapath.loaded.config, stale);
        if let Err(error) = controller.sync_addresses().await {
            // Cluster IPs work without.
            controller.attempts.failed(&error);
        }
        controller.sync_devices().await?;
        let Datapath {
            loaded, pins, mode, ..
        } = &mut controller.datapath;
        // Now that no device uses the old ones any more.
        if !loaded.programs.are_pinned() {
            pinned::pin(&mut loaded.ebpf, pins)?;
        }
        let condition = controller.devices.condition();
        controller.health.tell(Subject::Devices, condition);
        controller.health.attached();
        let devices = controller.devices.attached().count();
        info!(devices, ?mode, "programs attached");
        Ok(controller)
    }

    /// Takes over what an earlier agent left, as far as it is of this node as
    /// it is now.
    async fn adopt(&mut self) -> anyhow::Result<()> {
        // Pins of another network namespace name other devices: the node is a
        // container that was made anew.
        let cookie = sys::netns::cookie();
        if settings::is_of_other_namespace(&self.datapath.loaded.config, cookie) {
            self.devices.forget_all(&mut self.datapath.attach()).await;
            settings::set_namespace(&mut self.datapath.loaded.config, cookie);
        }
        flow_sweeper::tell_of_pressure(&mut self.datapath.loaded, [Swept::default(); 2]);
        let links = self.watch.links().await?;
        let attach = &mut self.datapath.attach();
        Ok(self.devices.forget_gone(&links, attach).await?)
    }
}
