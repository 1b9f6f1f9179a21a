//! The loop that keeps the tables of both families as the API wants them.
//!
//! ```text
//! changes ─► index ─┬─► IPv4: pending Services ─► select ─► SyncTarget<V4>
//!                   └─► IPv6: pending Services ─► select ─► SyncTarget<V6>
//! ```
//!
//! The families have separate queues, paces, retries and problems: nothing
//! that goes wrong in one delays the other. From time to time every family's
//! real tables are compared with what they should be.

pub(crate) mod family;
pub mod growth;
pub(crate) mod pace;

use std::{
    collections::BTreeSet,
    rc::Rc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use proxy_common::family::Family;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use self::{
    family::{FamilyQueue, Queue},
    growth::Growth,
};
use crate::{
    health::{Health, state::NodeState},
    index::{Index, Indexed},
    metrics::Metrics,
    model::{EndpointSlice, IpFamily, Kind, Node, ObjectKey, Parsed, Problem, State},
    notice::Ledger,
    plan,
    select::DesiredPort,
    source::{Batch, Change, Update},
    sys,
};

/// One family's tables, in the kernel or, for tests, in memory.
pub trait SyncTarget<F: Family> {
    /// Makes the tables serve what is desired of these Services. If `complete`,
    /// there are no others; otherwise the others stay as they are.
    fn sync(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome;

    /// Compares the real tables with what is desired of these Services, which
    /// are all, and repairs what is different. Returns the number of repairs.
    fn audit(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        desired: &mut Desired<F>,
    ) -> anyhow::Result<usize>;

    /// Other tables have taken the place of these, with the same in them: the next sync
    /// uses those.
    fn reopen(&mut self) {}
}

/// Returns the ports of a Service as the tables should have them; empty if the Service
/// has nothing in this family. Computed on demand: stored ports would be a second copy
/// of the index.
pub type Desired<'a, F> = dyn FnMut(&ObjectKey) -> Vec<DesiredPort<F>> + 'a;

/// Longest time between two turns of the loop, so that one that stands still is noticed.
const TURN: Duration = Duration::from_secs(15);
/// Lines logged about the new problems of one object.
const MAX_LINES: usize = 5;

/// The result of a sync.
#[derive(Debug, Default)]
pub struct SyncOutcome {
    /// Single changes written.
    pub writes: usize,
    /// Parts of this sync's Services that the tables have no room for.
    pub problems: Vec<plan::Problem>,
    /// Services to look at again in a while, although nothing about them
    /// changed: there may be room then.
    pub retry: BTreeSet<ObjectKey>,
    /// The error that ended the sync early. The next sync covers all Services (S87).
    pub error: Option<anyhow::Error>,
}

/// The intervals of the reconciler's periodic work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Minimum time from the end of one sync to the start of the next.
    pub min_sync: Duration,
    /// Time from one comparison with the real tables to the next.
    pub audit: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            min_sync: Duration::ZERO,
            audit: Duration::from_mins(1),
        }
    }
}

/// Takes changes from a source and brings them into the tables.
pub struct Reconciler {
    index: Index,
    families: Vec<Box<dyn Queue>>,
    intervals: Intervals,
    problems: Ledger<(Kind, ObjectKey), Problem>,
    node: watch::Sender<Option<Node>>,
    health: Health,
    service_ranges: watch::Sender<Option<BTreeSet<IpNet>>>,
    in_force: watch::Sender<bool>,
    growth: Option<Rc<Growth>>,
    metrics: Metrics,
    /// Changes of Services and of EndpointSlices since all families were up to date.
    pending: [usize; 2],
    /// Changes older than this were not ours to program in time (S28).
    started: SystemTime,
}

impl Reconciler {
    /// A reconciler for the node of that name, with no families yet.
    pub fn new(node_name: impl Into<String>, intervals: Intervals, metrics: Metrics) -> Self {
        Self {
            index: Index::new(node_name),
            families: Vec::new(),
            intervals,
            problems: Ledger::default(),
            node: watch::Sender::new(None),
            health: Health::default(),
            service_ranges: watch::Sender::new(None),
            in_force: watch::Sender::new(false),
            growth: None,
            metrics,
            pending: [0; 2],
            started: SystemTime::now(),
        }
    }

    /// Reports to that health; before any family is added.
    #[must_use]
    pub fn with_health(mut self, health: &Health) -> Self {
        self.health = health.clone();
        self
    }

    /// Sets whether spec.externalIPs are served (S7); they are, unless this says no.
    #[must_use]
    pub fn with_external_ips(mut self, serve: bool) -> Self {
        self.index.serve_external_ips(serve);
        self
    }

    /// Asks for larger tables where those of the families that are added after this are
    /// full.
    #[must_use]
    pub fn with_growth(mut self, growth: &Rc<Growth>) -> Self {
        self.growth = Some(Rc::clone(growth));
        self
    }

    /// Adds a family and the tables it is programmed into.
    #[must_use]
    pub fn with_family<F: Family>(mut self, program: impl SyncTarget<F> + 'static) -> Self {
        let queue = FamilyQueue::new(
            program,
            self.intervals.min_sync,
            self.metrics.clone(),
            self.health.clone(),
            self.growth.clone(),
        );
        self.families.push(Box::new(queue));
        self
    }

    /// This node's object whenever it changes, for those who need its
    /// addresses and prefixes.
    pub fn node(&self) -> watch::Receiver<Option<Node>> {
        self.node.subscribe()
    }

    /// Watches the prefixes that cluster IPs come from; `None` before they are known.
    pub fn service_ranges(&self) -> watch::Receiver<Option<BTreeSet<IpNet>>> {
        self.service_ranges.subscribe()
    }

    /// Returns whether the tables of all families have been what they should be once.
    pub fn in_force(&self) -> watch::Receiver<bool> {
        self.in_force.subscribe()
    }

    /// Runs until the source is gone, or until polled no more. The tables stay
    /// as they are then; no sync is left in the middle.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Batch>) {
        self.health
            .start(self.families.iter().map(|family| family.family()));
        let mut audit_at = Instant::now() + self.intervals.audit;
        let growth = self.growth.clone();
        let mut exchanged = growth.as_ref().map(|growth| growth.watch());
        loop {
            self.health.turned();
            let wake_at = audit_at.min(Instant::now() + TURN);
            let wake_at = self.due().map_or(wake_at, |due| due.min(wake_at));
            tokio::select! {
                biased;
                () = next(&mut exchanged) => {
                    for family in &mut self.families {
                        family.reopen();
                    }
                }
                batch = changes.recv() => match batch {
                    Some(batch) => self.take_all(batch, &mut changes),
                    None => return,
                },
                () = sleep_until(wake_at) => {}
            }
            self.sync_due();
            self.count_pending();
            if Instant::now() >= audit_at {
                for family in &mut self.families {
                    family.audit(&self.index);
                }
                sys::allocator::release_memory();
                audit_at = Instant::now() + self.intervals.audit;
            }
        }
    }

    /// The time of the next sync of any family.
    fn due(&self) -> Option<Instant> {
        let ready = self.index.is_complete();
        let due = self.families.iter().filter_map(|family| family.due());
        due.min().filter(|_| ready)
    }

    fn sync_due(&mut self) {
        if !self.index.is_complete() {
            return;
        }
        for family in &mut self.families {
            if family.due().is_some_and(|due| due <= Instant::now()) {
                family.sync(&self.index);
            }
        }
        if self.families.iter().all(|family| family.was_in_force()) {
            self.in_force
                .send_if_modified(|known| !std::mem::replace(known, true));
        }
    }

    /// Counts the changes that are not in force in some family.
    fn count_pending(&mut self) {
        if self.families.iter().all(|family| family.is_up_to_date()) {
            self.pending = [0; 2];
        }
        let [services, endpoints] = self.pending;
        self.metrics.pending_changes(services, endpoints);
    }

    /// Takes in a batch and whatever else has come in the meantime.
    fn take_all(&mut self, batch: Batch, changes: &mut mpsc::Receiver<Batch>) {
        let mut next = Some(batch);
        while let Some(batch) = next {
            for change in batch {
                self.take(change);
            }
            next = changes.try_recv().ok();
        }
        let dirty = self.index.take_dirty();
        debug!(services = dirty.len(), "changes taken in");
        for family in &mut self.families {
            family.enqueue(&dirty);
        }
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Service(update) => {
                let changed = self.update(update);
                self.metrics.service_changes(changed);
                self.pending[0] += changed;
            }
            Change::EndpointSlice(update) => {
                let trigger = self.trigger(&update);
                let changed = self.update(update);
                self.metrics.endpoint_changes(changed);
                self.pending[1] += changed;
                if let Some(trigger) = trigger.filter(|_| changed > 0) {
                    for family in &mut self.families {
                        family.note(&trigger);
                    }
                }
            }
            Change::Node(update) => {
                if self.update(update) > 0 {
                    self.node.send_replace(self.index.node().cloned());
                }
                let node = self.index.node();
                let state = node.map_or(NodeState::Missing, |node| NodeState::Here(node.leaving));
                self.health.set_node(state);
            }
            Change::ServiceCidr(update) => {
                self.update(update);
                let ranges = self.index.service_ranges();
                self.service_ranges.send_if_modified(|known| {
                    let changed = *known != ranges;
                    *known = ranges;
                    changed
                });
            }
        }
    }

    /// The change whose latency is measured, if an update of a slice brings one:
    /// a change since the start, of a Service that will be synced for it.
    fn trigger(&self, update: &Update<EndpointSlice>) -> Option<Trigger> {
        let Update::Apply(Parsed {
            state: State::Usable(slice),
            triggered: Some(time),
            ..
        }) = update
        else {
            return None;
        };
        let is_ours = *time >= self.started && self.index.service(&slice.service).is_some();
        is_ours.then_some(Trigger {
            family: slice.family,
            time: *time,
        })
    }

    /// Brings an update into the index. Returns the number of objects changed.
    fn update<T: Indexed>(&mut self, update: Update<T>) -> usize {
        match update {
            Update::Relist(objects) => {
                let present: BTreeSet<_> =
                    objects.iter().map(|o| (T::KIND, o.key.clone())).collect();
                self.problems
                    .retain(|key| key.0 != T::KIND || present.contains(key));
                let mut usable = Vec::with_capacity(objects.len());
                let mut unreadable = BTreeSet::new();
                for object in objects {
                    match self.report(object) {
                        (_, State::Usable(object)) => usable.push(object),
                        (_, State::Absent) => {}
                        (key, State::Unreadable) => drop(unreadable.insert(key)),
                    }
                }
                // One that does not say its name may be any.
                let any = unreadable.contains(&ObjectKey::default());
                let stays = |key: &ObjectKey| any || unreadable.contains(key);
                self.index.replace_except::<T>(usable, stays)
            }
            Update::Apply(object) => match self.report(object) {
                (_, State::Usable(object)) => usize::from(self.index.apply(object)),
                (key, State::Absent) => usize::from(self.index.delete::<T>(&key)),
                (_, State::Unreadable) => 0,
            },
            Update::Delete(key) => {
                let changed = self.index.delete::<T>(&key);
                self.problems.forget(&(T::KIND, key));
                usize::from(changed)
            }
        }
    }

    /// Logs and counts an object's new problems; returns its key and state.
    fn report<T: Indexed>(&mut self, object: Parsed<T>) -> (ObjectKey, State<T>) {
        let key = (T::KIND, object.key);
        let fresh = self.problems.report(&key, object.problems);
        for problem in fresh.iter().take(MAX_LINES) {
            warn!(kind = %T::KIND, object = %key.1, "{problem}");
        }
        if let Some(more @ 1..) = fresh.len().checked_sub(MAX_LINES) {
            warn!(kind = %T::KIND, object = %key.1, "and {more} more problems");
        }
        for problem in &fresh {
            self.metrics.object_problem(T::KIND, problem.reason());
        }
        (key.1, object.state)
    }
}

/// Waits for a change, if there may be one.
async fn next(news: &mut Option<watch::Receiver<()>>) {
    if let Some(news) = news
        && news.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// The change that a slice's version reflects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    pub family: IpFamily,
    pub time: SystemTime,
}

#[cfg(test)]
mod tests;
