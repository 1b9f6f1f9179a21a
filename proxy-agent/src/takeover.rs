//! Takes over from a kube-proxy that is at work on this node, and gives back to it.
//!
//! | phase | new flows | flows of kube-proxy | `CONFIG` |
//! |---|---|---|---|
//! | [`Phase::Hold`] | kube-proxy's | kube-proxy's | `LEAVE_NEW`, `FOREIGN` |
//! | [`Phase::TakeOver`] | ours | kube-proxy's | `FOREIGN` |
//! | [`Phase::Off`] | ours | there are none, and no rules | |
//! | [`Phase::GiveBack`] | kube-proxy's | kube-proxy's | `LEAVE_NEW` |
//!
//! A fresh agent beside kube-proxy holds: programs are attached that let all flows pass,
//! and enter the new ones in `FOREIGN`. When the tables of Services are complete, netfilter
//! lists the connections that it translates to addresses of Services, those are entered
//! too, and one store takes over. A flow that is in neither list is younger than the
//! store. From then on `FOREIGN` only shrinks: what netfilter knows no more is taken out,
//! until nothing is left, and no rule either.

mod connections;
mod left;
pub mod order;
pub mod phase;
pub mod rules;
pub mod status;

use std::{
    collections::{HashMap, HashSet},
    io,
    mem::offset_of,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use proxy_common::{
    backend::Backend,
    config::Config,
    family::{V4, V6},
    flow::{ticks, ticks_from_seconds},
    foreign::{Foreign, Tuple},
    frontend::FrontendKey,
    net::{BePort, Protocol},
};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

pub use self::{
    connections::{Found, Translated},
    left::Left,
};
use self::{
    left::{Changes, Judge},
    order::Order,
    phase::Phase,
    rules::Rules,
};
use crate::{
    dataplane::{
        foreign::ForeignTable,
        load::{self, LoadError},
        mapped::{Access, Mapped},
        pins::Pins,
        tables::{KernelFamily, KernelTables, TableError},
    },
    notice::Notice,
    sys::netfilter::conntrack,
};

/// Time between two looks at netfilter's connections, at least; and how many times as long
/// as a CPU works on one.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_FACTOR: u32 = 20;
/// The same when nothing is left but rules.
const IDLE_PAUSE: Duration = Duration::from_secs(5);
/// Time that packets need from our hook to the place where netfilter enters their
/// connection.
const SETTLE: Duration = Duration::from_millis(100);

/// Flows of kube-proxy cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("list the connections that netfilter knows (nf_conntrack_netlink, CAP_NET_ADMIN)")]
    List(#[source] io::Error),
    #[error("read the clock")]
    Clock(#[source] io::Error),
}

/// Follows the flows of kube-proxy.
pub struct Takeover {
    pins: Pins,
    config: Mapped<Config>,
    v4: Side<V4>,
    v6: Side<V6>,
    pause: Duration,
    full: Notice<()>,
    is_over: Notice<()>,
    failure: Notice<String>,
}

/// What is known of one family.
#[derive(Debug)]
struct Side<F: KernelFamily> {
    /// What `FOREIGN` holds, once only this agent writes to it.
    known: Option<HashMap<Tuple<F::Addr>, Foreign>>,
    /// Tuples that the last list lacked.
    missing: HashSet<Tuple<F::Addr>>,
}

impl Takeover {
    /// Goes on where an earlier agent was. A fresh one, whose programs are not attached
    /// yet, holds if kube-proxy is at work on this node.
    pub fn start(pins: &Pins, fresh: bool) -> Result<Self, TakeoverError> {
        let mut takeover = Self {
            pins: pins.clone(),
            config: load::open_config(pins, Access::Write)?,
            v4: Side::new(),
            v6: Side::new(),
            pause: PAUSE,
            full: Notice::default(),
            is_over: Notice::default(),
            failure: Notice::default(),
        };
        if order::read(pins) == Order::Back {
            takeover.enter(Phase::GiveBack)?;
        } else if fresh && is_beside_kube_proxy() {
            takeover.enter(Phase::Hold)?;
        }
        Ok(takeover)
    }

    /// Keeps going until polled no more. `in_force` says whether the tables of Services
    /// have been complete.
    pub async fn run(&mut self, mut in_force: watch::Receiver<bool>) {
        loop {
            let result = self.step(*in_force.borrow()).await;
            match result {
                Ok(()) => {
                    self.failure.clear();
                }
                Err(error) => self.fail(error),
            }
            tokio::select! {
                () = sleep(self.pause) => {}
                Ok(()) = in_force.changed() => {}
            }
        }
    }

    async fn step(&mut self, in_force: bool) -> Result<(), TakeoverError> {
        let phase = self.phase();
        let ordered = phase.ordered(order::read(&self.pins), rules_are_here);
        if ordered != phase {
            self.enter(ordered)?;
        }
        match self.phase() {
            Phase::Hold if in_force => {
                sleep(SETTLE).await;
                let left = self.compare(true).await?;
                info!("kube-proxy keeps its {left}; all others are ours from now on");
                self.enter(Phase::TakeOver)
            }
            Phase::TakeOver => {
                let left = self.compare(false).await?;
                if !left.is_empty() {
                    return Ok(());
                }
                if self.is_over.is_news(()) {
                    info!(
                        "no flow of kube-proxy is left; `proxy-agent takeover status` tells whether it can be removed"
                    );
                }
                // As long as there are rules, processes of this node get flows by them.
                if !rules_are_here() {
                    self.enter(Phase::Off)?;
                }
                self.pause = self.pause.max(IDLE_PAUSE);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Without netfilter's list there is no telling which flows are kube-proxy's: they are
    /// taken for new ones, as those of other proxies.
    fn fail(&mut self, error: TakeoverError) {
        let gives_up = matches!(error, TakeoverError::List(_));
        let text = format!("{:#}", anyhow::Error::new(error));
        if gives_up {
            warn!("flows that kube-proxy has translated may break, as they cannot be told: {text}");
            let _ = self.enter(Phase::Off);
        } else if self.failure.is_news(text.clone()) {
            warn!("cannot follow the flows of kube-proxy, trying again: {text}");
        }
    }

    fn phase(&self) -> Phase {
        let flags = self.config.get(0).map_or(0, |config| config.flags);
        Phase::of(flags)
    }

    /// Tells the programs by one store.
    fn enter(&mut self, phase: Phase) -> Result<(), TakeoverError> {
        if phase == Phase::Hold {
            info!("kube-proxy is at work on this node: its flows are left to it");
            self.clear::<V4>()?;
            self.clear::<V6>()?;
        }
        if phase == Phase::GiveBack {
            info!("open flows go on here, new ones are left to kube-proxy");
        }
        store(&mut self.config, phase);
        if matches!(phase, Phase::Off | Phase::GiveBack) {
            self.clear::<V4>()?;
            self.clear::<V6>()?;
            self.pause = PAUSE;
        }
        (self.v4, self.v6) = (Side::new(), Side::new());
        Ok(())
    }

    fn clear<F: KernelFamily>(&self) -> Result<(), TakeoverError> {
        let mut table = ForeignTable::<F>::open(&self.pins)?;
        for tuple in table.entries()?.into_keys() {
            table.remove(tuple)?;
        }
        Ok(())
    }

    /// Compares the tables with what netfilter knows. Returns the flows that are left.
    async fn compare(&mut self, admits: bool) -> Result<Left, TakeoverError> {
        let found = Found::list().await.map_err(TakeoverError::List)?;
        let start = busy();
        let now = now().map_err(TakeoverError::Clock)?;
        let v4 = self.v4.compare(&self.pins, &found.v4, admits, now)?;
        let v6 = self.v6.compare(&self.pins, &found.v6, admits, now)?;
        let work = found.work + busy().saturating_sub(start);
        self.pause = PAUSE.max(work * PAUSE_FACTOR);
        if (v4.is_full || v6.is_full) && self.full.is_news(()) {
            warn!(
                "not all flows of kube-proxy can be told apart, their table is full: UDP clients among the others get another backend"
            );
        }
        Ok(v4.left + v6.left)
    }
}

/// The result of a comparison.
struct Compared {
    left: Left,
    is_full: bool,
}

impl<F: KernelFamily> Side<F> {
    fn new() -> Self {
        Self {
            known: None,
            missing: HashSet::new(),
        }
    }

    fn compare(
        &mut self,
        pins: &Pins,
        found: &[Translated<F>],
        admits: bool,
        now: u32,
    ) -> Result<Compared, TakeoverError> {
        let mut table = ForeignTable::<F>::open(pins)?;
        let mut known = match self.known.take() {
            Some(known) => known,
            None => table.entries()?,
        };
        let mut is_full = false;
        let mut left = Left::default();
        if !known.is_empty() || admits && !found.is_empty() {
            let services = Services::<F>::open(pins)?;
            let judge = Judge {
                known: &known,
                missing: &self.missing,
                admits,
                expired_before: now.wrapping_sub(ticks_from_seconds(2)),
            };
            let changes: Changes<F> = judge.judge(
                found,
                |tuple| services.of(tuple),
                |service, backend| services.has(service, backend),
            );
            for (tuple, direction) in changes.insert {
                let value = Foreign {
                    entered: now,
                    direction,
                };
                is_full |= !table.insert(tuple, value)?;
                known.insert(tuple, value);
            }
            for tuple in changes.remove {
                table.remove(tuple)?;
                known.remove(&tuple);
            }
            for flow in changes.end {
                // The next packet is ours, whether netfilter still knows the flow or not.
                if let Err(error) = conntrack::forget(flow.protocol.0, &flow.original()) {
                    warn!("cannot make netfilter forget a flow to a backend that is gone: {error}");
                }
            }
            self.missing = changes.missing;
            left = changes.left;
        }
        // Programs enter flows before.
        self.known = (!admits).then_some(known);
        Ok(Compared { left, is_full })
    }
}

/// The tables of Services, as far as they concern flows of kube-proxy.
struct Services<F: KernelFamily> {
    tables: KernelTables<F>,
    /// Backends that answer requests, with their row of `SERVICES`.
    serving: HashSet<(u32, F::Addr, BePort)>,
}

impl<F: KernelFamily> Services<F> {
    fn open(pins: &Pins) -> Result<Self, TableError> {
        let tables = KernelTables::<F>::open(pins, Access::Read)?;
        let serving = tables
            .backends()
            .filter(|backend| backend.flags & Backend::<F::Addr>::SERVING != 0)
            .map(|backend| (backend.service, backend.addr, backend.port))
            .collect();
        Ok(Self { tables, serving })
    }

    /// The row of `SERVICES` that a request is for. One that cannot be read counts as
    /// none.
    fn of(&self, request: &Tuple<F::Addr>) -> Option<u32> {
        let (port, protocol) = (request.dst_port, request.protocol);
        [
            FrontendKey::new(request.dst, port, protocol),
            FrontendKey::node_port(port, protocol),
        ]
        .into_iter()
        .find_map(|key| self.tables.service(key).ok().flatten())
    }

    fn has(&self, service: u32, (addr, port): (F::Addr, BePort)) -> bool {
        self.serving.contains(&(service, addr, port))
    }
}

/// Makes this the phase, by one store of eight bytes.
pub fn store(config: &mut Mapped<Config>, phase: Phase) {
    const OFFSET: usize = offset_of!(Config, layout);
    const {
        assert!(OFFSET.is_multiple_of(8) && offset_of!(Config, flags) == OFFSET + 4);
    }
    let Some(row) = config.get(0) else {
        return;
    };
    let flags = phase.set(row.flags);
    let mut word = [0; 8];
    let halves = [row.layout, flags].map(u32::to_ne_bytes);
    word.copy_from_slice(halves.as_flattened());
    // One row, which is there.
    let _ = config.store(0, OFFSET, u64::from_ne_bytes(word));
}

/// Returns whether kube-proxy has rules here, or had when connections were opened that
/// netfilter still translates.
fn is_beside_kube_proxy() -> bool {
    rules_are_here() || Found::list_now().is_ok_and(|found| !found.is_empty())
}

fn rules_are_here() -> bool {
    Rules::read().is_ok_and(|rules| !rules.of_kube_proxy.is_empty())
}

/// Time that a CPU has worked on this thread.
fn busy() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    time.unwrap_or_default()
}

/// The time now, on the clock of flows.
fn now() -> io::Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let nanoseconds = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
    Ok(ticks(nanoseconds.cast_unsigned()))
}

/// A protocol that kube-proxy translates.
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
