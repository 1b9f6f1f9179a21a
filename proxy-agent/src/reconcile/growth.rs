//! How large the tables of Services become when one of them is full.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use proxy_common::{family::Family, table::Table};
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use crate::{
    dataplane::load::{FixedSizes, Sizes},
    notice::Notice,
    select::DesiredPort,
};

/// Kernel memory that tables of both families take for each Service port and each
/// endpoint that there is room for.
pub const BYTES_PER_SERVICE_PORT: u64 = 208;
pub const BYTES_PER_ENDPOINT: u64 = 88;

/// Least time from one growth to the next. It doubles with each that fails.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// The entries that the Service ports of one family need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    pub service_ports: usize,
    pub frontends: usize,
    pub endpoints: usize,
    pub slots: usize,
    pub source_ranges: usize,
}

impl Demand {
    /// Adds a Service port.
    pub fn add<F: Family>(&mut self, port: &DesiredPort<F>) {
        self.service_ports += 1;
        // Each address may have an entry of its own.
        self.frontends += port.frontends.len() * 2;
        self.endpoints += port.endpoints.len();
        let sets = port.endpoints.values();
        self.slots += sets
            .map(|used| usize::from(used.cluster) + usize::from(used.local))
            .sum::<usize>();
        self.source_ranges += port.source_ranges.len();
    }
}

/// Why a table stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// A flag says how large it is.
    Fixed,
    /// There is no memory for a larger one.
    Memory,
}

/// The sizes with room for `demand` and at least twice as much of what is full, as far as
/// flags leave it open and all tables of Services take no more than `memory` bytes.
fn larger(
    sizes: Sizes,
    fixed: FixedSizes,
    full: &BTreeSet<Table>,
    demand: Demand,
    memory: u64,
) -> Result<Sizes, Kept> {
    let is_full = |tables: &[Table]| tables.iter().any(|table| full.contains(table));
    let frontends = demand
        .frontends
        .div_ceil(Sizes::FRONTENDS_PER_SERVICE as usize);
    let mut next = sizes;
    let mut kept = Kept::Fixed;
    if is_full(&[Table::SourceRanges]) {
        next.source_ranges = enough(sizes.source_ranges, demand.source_ranges, true);
    }
    if !fixed.services {
        next.services = enough(
            sizes.services,
            demand.service_ports.max(frontends),
            is_full(&[Table::Services, Table::Frontends, Table::Names]),
        );
    }
    if !fixed.endpoints {
        next.endpoints = enough(
            sizes.endpoints,
            demand.endpoints.max(demand.slots.div_ceil(2)),
            is_full(&[Table::Slots, Table::Backends]),
        );
    }
    while next != sizes && bytes(next) > memory {
        kept = Kept::Memory;
        next.services = (next.services / 2).max(sizes.services);
        next.endpoints = (next.endpoints / 2).max(sizes.endpoints);
        if (next.services, next.endpoints) == (sizes.services, sizes.endpoints) {
            break;
        }
    }
    if next == sizes { Err(kept) } else { Ok(next) }
}

/// A size that `needed` entries fit in, with as many again for half of them while they
/// change; at least twice the size where the table is full.
fn enough(size: u32, needed: usize, is_full: bool) -> u32 {
    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
    if !is_full && needed <= size {
        return size;
    }
    let roomy = needed
        .saturating_add(needed / 2)
        .checked_next_power_of_two()
        .unwrap_or(1 << 31);
    roomy.max(size.saturating_mul(2))
}

/// Kernel memory of the tables of Services.
fn bytes(sizes: Sizes) -> u64 {
    u64::from(sizes.services) * BYTES_PER_SERVICE_PORT
        + u64::from(sizes.endpoints) * BYTES_PER_ENDPOINT
}

/// Asks for larger tables when they are full, and tells when there are some. Shared by
/// those who fill the tables and those who make them.
#[derive(Debug)]
pub struct Growth {
    fixed: FixedSizes,
    memory: u64,
    state: RefCell<State>,
    wanted: watch::Sender<Option<Sizes>>,
    exchanged: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    sizes: Sizes,
    not_before: Option<Instant>,
    pause: Duration,
    no_memory: Notice<Sizes>,
}

impl Growth {
    /// Tables of these sizes, which may grow unless a flag has fixed them, to so many bytes
    /// together.
    pub fn new(sizes: Sizes, fixed: FixedSizes, memory: u64) -> Self {
        Self {
            fixed,
            memory,
            state: RefCell::new(State {
                sizes,
                not_before: None,
                pause: PAUSE,
                no_memory: Notice::default(),
            }),
            wanted: watch::Sender::new(None),
            exchanged: watch::Sender::new(()),
        }
    }

    /// Asks for larger tables in the place of those that are full; returns whether there
    /// will be some in a moment.
    pub(super) fn ask(&self, full: &BTreeSet<Table>, demand: impl FnOnce() -> Demand) -> bool {
        if self.wanted.borrow().is_some() {
            return true;
        }
        let state = &mut *self.state.borrow_mut();
        if state.not_before.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        match larger(state.sizes, self.fixed, full, demand(), self.memory) {
            Ok(sizes) => {
                self.wanted.send_replace(Some(sizes));
                true
            }
            Err(kept) => {
                state.not_before = Some(Instant::now() + PAUSE);
                if kept == Kept::Memory && state.no_memory.is_news(state.sizes) {
                    warn!(
                        mebibytes = self.memory >> 20,
                        "tables of Services are full and do not grow by themselves: larger ones would take more memory than is theirs; \
                         --max-service-ports and --max-endpoints make them larger all the same"
                    );
                }
                false
            }
        }
    }

    /// Waits until larger tables are asked for; returns their sizes.
    pub async fn wanted(&self) -> Sizes {
        let mut wanted = self.wanted.subscribe();
        match wanted.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(sizes)) => *sizes,
            // The sender is `self`.
            _ => std::future::pending().await,
        }
    }

    /// The tables were made anew, larger or, if that failed, as they were.
    pub fn exchanged(&self, sizes: Sizes) {
        let mut state = self.state.borrow_mut();
        let pause = if sizes == state.sizes {
            state.pause = (state.pause * 2).min(LONGEST_PAUSE);
            state.pause
        } else {
            info!(
                service_ports = sizes.services,
                endpoints = sizes.endpoints,
                source_ranges = sizes.source_ranges,
                "tables of Services have grown, open flows go on"
            );
            PAUSE
        };
        state.pause = pause;
        state.not_before = Some(Instant::now() + pause);
        state.sizes = sizes;
        self.wanted.send_replace(None);
        self.exchanged.send_replace(());
    }

    /// Tells whenever tables were made anew.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.exchanged.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MIB: u64 = 1 << 20;
    const FREE: FixedSizes = FixedSizes {
        services: false,
        endpoints: false,
        flows: false,
    };
    const SIZES: Sizes = Sizes {
        services: 64,
        endpoints: 128,
        source_ranges: 16,
        ..Sizes::DEFAULT
    };

    fn demand(service_ports: usize, endpoints: usize) -> Demand {
        Demand {
            service_ports,
            frontends: service_ports * 2,
            endpoints,
            slots: endpoints,
            source_ranges: 0,
        }
    }

    fn asked(
        fixed: FixedSizes,
        full: &[Table],
        demand: Demand,
        memory: u64,
    ) -> Result<(u32, u32, u32), Kept> {
        let full = full.iter().copied().collect();
        let next = larger(SIZES, fixed, &full, demand, memory)?;
        Ok((next.services, next.endpoints, next.source_ranges))
    }

    #[rstest]
    #[case::a_little_too_small(&[Table::Services], demand(65, 65), (128, 128, 16))]
    #[case::by_rows_that_rest(&[Table::Backends], demand(10, 100), (64, 256, 16))]
    #[case::ten_times(&[Table::Services], demand(640, 1280), (1024, 2048, 16))]
    #[case::by_frontends(
        &[Table::Frontends],
        Demand { frontends: 2560, ..demand(64, 64) },
        (1024, 128, 16)
    )]
    #[case::by_slots(&[Table::Slots], Demand { slots: 600, ..demand(64, 64) }, (64, 512, 16))]
    #[case::by_source_ranges(
        &[Table::SourceRanges],
        Demand { source_ranges: 100, ..demand(10, 10) },
        (64, 128, 256)
    )]
    fn one_growth_is_enough(
        #[case] full: &[Table],
        #[case] demand: Demand,
        #[case] expected: (u32, u32, u32),
    ) {
        assert_eq!(asked(FREE, full, demand, MIB), Ok(expected));
    }

    #[test]
    fn a_flag_wins() {
        let fixed = FixedSizes {
            services: true,
            ..FREE
        };
        let full = [Table::Services];
        assert_eq!(asked(fixed, &full, demand(640, 100), MIB), Err(Kept::Fixed));
        let full = [Table::Services, Table::Backends];
        let expected = Ok((64, 2048, 16));
        assert_eq!(asked(fixed, &full, demand(640, 1280), MIB), expected);
    }

    #[test]
    fn tables_take_no_more_than_their_memory() {
        let full = [Table::Services];
        let half = bytes(Sizes {
            services: 512,
            endpoints: 1024,
            ..SIZES
        });
        let asked = |memory| asked(FREE, &full, demand(640, 1280), memory);
        assert_eq!(asked(half), Ok((512, 1024, 16)));
        assert_eq!(asked(bytes(SIZES)), Err(Kept::Memory));
        assert_eq!(asked(0), Err(Kept::Memory));
    }

    #[test]
    fn what_nobody_has_memory_for_does_not_overflow() {
        let all = demand(usize::MAX / 4, usize::MAX / 4);
        let full = [Table::Services, Table::Backends];
        assert_eq!(asked(FREE, &full, all, 0), Err(Kept::Memory));
        assert!(asked(FREE, &full, all, u64::MAX).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn growths_that_fail_become_rare() {
        let growth = Growth::new(SIZES, FREE, MIB);
        let full = BTreeSet::from([Table::Services]);
        let ask = || growth.ask(&full, || demand(65, 65));
        let mut pauses = Vec::new();
        for _ in 0..3 {
            assert!(ask() && ask(), "under way");
            let wanted = growth.wanted().await;
            assert_eq!(wanted.services, 128);
            growth.exchanged(SIZES);
            let start = Instant::now();
            while !ask() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            pauses.push(start.elapsed().as_secs());
        }
        assert_eq!(pauses, [20, 40, 80]);
        let wanted = growth.wanted().await;
        growth.exchanged(wanted);
        assert!(!ask(), "at once again");
        tokio::time::sleep(PAUSE).await;
        assert!(ask());
    }
}
