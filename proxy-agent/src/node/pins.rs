//! Keeps the pins, which hold the datapath when the agent is gone.

use tracing::{info, warn};

use super::{
    datapath::Datapath,
    devices::{DeviceController, Tables},
};
use crate::{
    dataplane::{
        attach::{self, Hook, Mode},
        cgroup,
        held::HeldMaps,
        load::pinned,
    },
    health::{
        Health,
        state::{Condition, Subject},
    },
    metrics::Metrics,
    sys::mount_namespace::{self, Lifetime},
};

/// Makes pins again that somebody has removed.
pub(super) struct PinController {
    held: HeldMaps,
    /// Whether this process mounted the bpf file system.
    is_ours: bool,
    health: Health,
    metrics: Metrics,
}

impl PinController {
    pub(super) fn new(held: HeldMaps, is_ours: bool, health: Health, metrics: Metrics) -> Self {
        Self {
            held,
            is_ours,
            health,
            metrics,
        }
    }

    /// Restores the pins a last time, and logs what becomes of forwarding when this agent
    /// has ended.
    pub(super) async fn leave<T: Tables>(
        &self,
        datapath: &mut Datapath,
        devices: &mut DeviceController<T>,
    ) {
        match self.restore(datapath, devices).await {
            Ok(()) => match mount_namespace::lifetime(datapath.pins.root(), self.is_ours) {
                Lifetime::Host => info!("stopping; forwarding goes on"),
                Lifetime::Others => warn!(
                    "stopping; forwarding goes on until the last process of this mount namespace ends"
                ),
                Lifetime::Process => warn!(
                    "stopping; forwarding ends with it: the bpf file system is mounted for this process only"
                ),
            },
            Err(error) => warn!("stopping; forwarding ends with it: {error:#}"),
        }
    }

    /// Restores the pins, also those in whose place somebody put others, and logs if that
    /// fails.
    pub(super) async fn audit<T: Tables>(
        &self,
        datapath: &mut Datapath,
        devices: &mut DeviceController<T>,
    ) {
        if let Err(error) = self.held.remove_others() {
            warn!("{:#}", anyhow::Error::new(error));
        }
        self.keep(datapath, devices).await;
    }

    /// Restores the pins that are gone, and logs if that fails.
    pub(super) async fn keep<T: Tables>(
        &self,
        datapath: &mut Datapath,
        devices: &mut DeviceController<T>,
    ) {
        let restored = self.restore(datapath, devices).await;
        let condition = restored.err().map(|error| {
            let root = datapath.pins.root().display();
            let text = format!("cannot restore the pins below {root}: {error:#}");
            warn!("{text}");
            // They are missed when this agent ends.
            Condition { text, fails: false }
        });
        self.health.tell(Subject::Pins, condition);
    }

    /// Makes pins again that somebody has removed. The programs of removed
    /// links are attached again.
    async fn restore<T: Tables>(
        &self,
        datapath: &mut Datapath,
        devices: &mut DeviceController<T>,
    ) -> anyhow::Result<()> {
        let maps = self.held.pin_again()?;
        let programs = datapath.pins.programs();
        let lost = pinned::device_programs().any(|name| !programs.join(name).exists());
        if lost {
            pinned::pin(&mut datapath.loaded.ebpf, &datapath.pins)?;
        }
        let links = datapath.mode == Mode::Tcx && {
            let pinned = attach::pinned_hooks(&datapath.pins);
            let is_whole = |ifindex| pinned.get(&ifindex) == Some(&Hook::BOTH.len());
            !devices.attached().all(is_whole)
        };
        if links {
            devices.audit(&mut datapath.attach()).await;
        }
        let calls = cgroup::attach_again(&mut datapath.loaded, &datapath.pins)?;
        datapath.loaded.programs.state()?;
        if maps > 0 || lost || links || calls {
            warn!(
                tables = maps,
                "pins below {} were removed or replaced by someone else, made again",
                datapath.pins.root().display()
            );
            self.metrics.pins_restored();
        }
        Ok(())
    }
}
