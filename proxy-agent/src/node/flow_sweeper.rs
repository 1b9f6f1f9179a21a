//! Sweeps of the flow tables, and what they lead to: whether tables are nearly full,
//! and how many flows a client may have then.

mod advice;
mod fair_share;

use std::time::Duration;

use proxy_common::{
    config::Config,
    counter::Counter,
    family::{V4, V6},
    share::{Share, UNLIMITED},
};
use tracing::warn;

use self::{advice::Advice, fair_share::fair_share};
use super::settings::{self, ConfigRow, set_flag};
use crate::{
    dataplane::{
        counters::Counters,
        load::Loaded,
        shares::{self, ShareError},
        sweep::{self, Swept},
    },
    metrics::Metrics,
};

/// Time between two sweeps of the flow tables.
pub(super) const SWEEP: Duration = Duration::from_secs(5);
/// The same while a table is nearly full.
const SWEEP_PRESSED: Duration = Duration::from_secs(1);
/// Sweeps in a row when a table is found nearly full: the first one tells how many
/// flows each client has, the second one who has more than its share.
const SWEEPS_IN_A_ROW: u32 = 2;
/// The flags of the families whose tables are nearly full.
const PRESSED: [u32; 2] = [Config::PRESSED_V4, Config::PRESSED_V6];

/// Keeps the flow tables free of dead flows.
pub(super) struct FlowSweeper {
    counters: Counters,
    metrics: Metrics,
    advice: Advice,
    pace: Pace,
    /// Flows refused for want of room, as far as that is known here.
    refused_for_room: u64,
}

impl FlowSweeper {
    pub(super) fn new(counters: Counters, metrics: Metrics) -> Self {
        Self {
            refused_for_room: counters.of(Counter::FlowTableFull),
            counters,
            metrics,
            advice: Advice::default(),
            pace: Pace::default(),
        }
    }

    /// Removes idle flows; returns when to do it again.
    pub(super) fn sweep(&mut self, loaded: &mut Loaded) -> Duration {
        match sweep::sweep(&mut loaded.ebpf) {
            Ok(swept) => {
                self.advice.tell(self.counters.read());
                let before = pressed(&loaded.config);
                tell_of_pressure(loaded, swept);
                self.share_out(loaded);
                let pressed = pressed(&loaded.config);
                let filling = swept.into_iter().any(|one| loaded.is_pressed(one, true));
                self.pace.after(Found {
                    newly_pressed: pressed & !before != 0,
                    filling: filling || pressed != 0,
                })
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                warn!("cannot sweep the flow tables: {error:#}");
                SWEEP
            }
        }
    }

    /// Tells the programs how many flows a client may have.
    fn share_out(&mut self, loaded: &mut Loaded) {
        match share_out(loaded) {
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

    /// Returns whether a flow table became full since the last look, and no sweep knows.
    pub(super) fn is_newly_full(&mut self, row: &impl ConfigRow) -> bool {
        let refused = self.counters.of(Counter::FlowTableFull);
        let more = refused > self.refused_for_room;
        self.refused_for_room = refused;
        more && pressed(row) == 0
    }
}

/// Sets the share of each family's clients by what the last sweep counted. Returns
/// them, IPv4 first.
pub fn share_out(loaded: &mut Loaded) -> Result<[Share; 2], ShareError> {
    let pressed = PRESSED.map(|flag| pressed(&loaded.config) & flag != 0);
    let room = room(loaded.flows.min(loaded.reply_tuples));
    let mut shares = [UNLIMITED; 2];
    for ((family, share), pressed) in (0..).zip(&mut shares).zip(pressed) {
        if pressed {
            *share = fair_share(&shares::client_sizes(loaded, family)?, room);
        }
        shares::set_share(loaded, family, *share)?;
    }
    Ok(shares)
}

/// Returns the number of flows that clients may have together in a table of this size: the
/// rest is for flows that open and for new clients.
fn room(size: u32) -> u32 {
    size / 8 * 7
}

/// Tells the programs how long flows may idle, and whether tables are nearly
/// full.
pub(super) fn tell_of_pressure(loaded: &mut Loaded, swept: [Swept; 2]) {
    let before = pressed(&loaded.config);
    let now = PRESSED
        .into_iter()
        .zip(swept)
        .filter(|(flag, swept)| loaded.is_pressed(*swept, before & flag != 0))
        .fold(0, |now, (flag, _)| now | flag);
    settings::update(&mut loaded.config, |config| {
        config.timeouts = settings::timeouts();
        for flag in PRESSED {
            set_flag(&mut config.flags, flag, now & flag != 0);
        }
    });
}

fn pressed(row: &impl ConfigRow) -> u32 {
    let flags = row.read().map_or(0, |config| config.flags);
    flags & (Config::PRESSED_V4 | Config::PRESSED_V6)
}

/// The result of a sweep, for both families together.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// A table is nearly full that was not before.
    newly_pressed: bool,
    /// A table is nearly full, or on its way there.
    filling: bool,
}

/// The time between sweeps.
#[derive(Debug, Default)]
struct Pace {
    /// Sweeps that are to follow at once.
    in_a_row: u32,
}

impl Pace {
    fn after(&mut self, found: Found) -> Duration {
        if found.newly_pressed {
            self.in_a_row = SWEEPS_IN_A_ROW;
        }
        if self.in_a_row > 0 {
            // What may go now must not wait.
            self.in_a_row -= 1;
            Duration::ZERO
        } else if found.filling {
            SWEEP_PRESSED
        } else {
            SWEEP
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sweeps_follow_at_once_when_a_table_is_nearly_full() {
        let mut pace = Pace::default();
        let idle = Found::default();
        let filling = Found {
            filling: true,
            ..idle
        };
        let newly_pressed = Found {
            newly_pressed: true,
            ..filling
        };
        let found = [idle, newly_pressed, filling, filling, filling, idle];
        let delays = found.map(|found| pace.after(found).as_secs());
        assert_eq!(delays, [5, 0, 0, 1, 1, 5]);
    }
}
