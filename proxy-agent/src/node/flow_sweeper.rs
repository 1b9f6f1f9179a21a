//! Sweeps of the flow tables, and what they lead to: whether tables are nearly full,
//! and how many flows a client may have then.

pub mod advice;
pub mod fair_share;

use std::time::Duration;

use proxy_common::{
    counter::Counter,
    family::{V4, V6},
};
use tracing::warn;

use super::NodeController;
use crate::dataplane::{shares, sweep};

/// Time between two sweeps of the flow tables.
pub(super) const SWEEP: Duration = Duration::from_secs(5);
/// The same while a table is nearly full.
const SWEEP_PRESSED: Duration = Duration::from_secs(1);
/// Sweeps in a row when a table is found nearly full: the first one tells how many
/// flows each client has, the second one who has more than its share.
const SWEEPS_IN_A_ROW: u32 = 2;

impl NodeController {
    /// Removes idle flows; returns when to do it again.
    pub(super) fn sweep(&mut self) -> Duration {
        match sweep::sweep(&mut self.loaded.ebpf) {
            Ok(swept) => {
                self.troubles.tell(self.counters.read());
                let before = self.pressed();
                self.write_settings(swept);
                self.share_out();
                let pressed = self.pressed();
                if pressed & !before != 0 {
                    self.sweeps_in_a_row = SWEEPS_IN_A_ROW;
                }
                let filling = swept
                    .into_iter()
                    .any(|one| self.loaded.is_pressed(one, true));
                if self.sweeps_in_a_row > 0 {
                    // What may go now must not wait.
                    self.sweeps_in_a_row -= 1;
                    Duration::ZERO
                } else if filling || pressed != 0 {
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

    /// Tells the programs how many flows a client may have.
    fn share_out(&mut self) {
        match shares::share_out(&mut self.loaded) {
            Ok([v4, v6]) => {
                self.metrics.client_share::<V4>(v4);
                self.metrics.client_share::<V6>(v6);
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                warn!("cannot share the flow tables out among the clients: {error:#}");
            }
        }
    }

    /// Whether a flow table became full since the last look, and no sweep knows.
    pub(super) fn is_newly_full(&mut self) -> bool {
        let refused = self.counters.of(Counter::FlowTableFull);
        let more = refused > self.refused_for_room;
        self.refused_for_room = refused;
        more && self.pressed() == 0
    }
}
