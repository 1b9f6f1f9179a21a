//! Keeps the pins, which hold the datapath when the agent is gone.

use tracing::{info, warn};

use super::NodeController;
use crate::dataplane::{
    attach::{self, Hook, Mode},
    cgroup,
    load::{self, PINNED_PROGRAMS},
};

impl NodeController {
    /// Says what becomes of forwarding when this agent ends, after it has done
    /// what it can for it.
    pub async fn leave(&mut self) {
        match self.restore_pins().await {
            Ok(()) => info!("stopping; forwarding goes on"),
            Err(error) => warn!("stopping; forwarding ends with it: {error:#}"),
        }
    }

    /// Restores the pins, and says so if that fails.
    pub(super) async fn keep_pins(&mut self) {
        if let Err(error) = self.restore_pins().await {
            warn!(
                "cannot restore the pins below {}: {error:#}",
                self.pins.root().display()
            );
        }
    }

    /// Makes pins again that somebody has removed. The programs of removed
    /// links are attached again.
    async fn restore_pins(&mut self) -> anyhow::Result<()> {
        let maps = self.held.pin_again()?;
        let programs = self.pins.programs();
        let lost = PINNED_PROGRAMS
            .iter()
            .any(|name| !programs.join(name).exists());
        if lost {
            load::pin_programs(&mut self.loaded.ebpf, &self.pins)?;
        }
        let links = self.mode == Mode::Tcx && {
            let pinned = attach::pinned_hooks(&self.pins);
            let is_whole = |ifindex| pinned.get(ifindex) == Some(&Hook::BOTH.len());
            !self.attached.keys().all(is_whole)
        };
        if links {
            self.audit_devices().await;
        }
        let calls = cgroup::attach_again(&mut self.loaded, &self.pins)?;
        if maps > 0 || lost || links || calls {
            warn!(
                tables = maps,
                "pins below {} were removed by someone else, made again",
                self.pins.root().display()
            );
        }
        Ok(())
    }
}
