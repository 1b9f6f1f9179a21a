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
mod held;
pub(crate) mod pace;
mod stale;

use std::{
    collections::{BTreeMap, BTreeSet},
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
    held::{Held, Loss},
    stale::Stale,
};
use crate::{
    health::{Health, state::NodeState},
    index::{Index, Indexed},
    last_state::Store,
    metrics::Metrics,
    model::{EndpointSlice, IpFamily, Kind, Node, ObjectKey, Parsed, Problem, Service, State},
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
    held: Held,
    /// Keeps the state for after a reboot.
    store: Option<Store>,
    /// The state from before the start, until it is known what is there now.
    stale: Option<Stale>,
    is_stale: watch::Sender<bool>,
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
            held: Held::default(),
            store: None,
            stale: None,
            is_stale: watch::Sender::new(false),
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

    /// Sets whether a list that has lost most Services takes effect at once.
    #[must_use]
    pub fn allowing_empty(mut self, allow: bool) -> Self {
        self.held.set_never(allow);
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

    /// Returns whether the state on disk is served.
    pub fn is_stale(&self) -> watch::Receiver<bool> {
        self.is_stale.subscribe()
    }

    /// Returns whether the tables of all families have been what they should be once,
    /// by what the source said since the start.
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
        self.begin_stale();
        loop {
            self.health.turned();
            let dues = [self.due(), self.held.due(), self.save_due()];
            let turn = audit_at.min(Instant::now() + TURN);
            let wake_at = dues.into_iter().flatten().fold(turn, Instant::min);
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
                () = written(&mut self.store) => {}
                () = sleep_until(wake_at) => {}
            }
            self.release_held();
            self.sync_due();
            self.count_pending();
            self.save();
            if Instant::now() >= audit_at {
                let index = self
                    .stale
                    .as_ref()
                    .map_or(&self.index, |stale| &stale.index);
                for family in &mut self.families {
                    family.audit(index);
                }
                sys::allocator::release_memory();
                audit_at = Instant::now() + self.intervals.audit;
            }
        }
    }

    /// The time of the next sync of any family.
    fn due(&self) -> Option<Instant> {
        let ready = self.serving().is_some();
        let due = self.families.iter().filter_map(|family| family.due());
        due.min().filter(|_| ready)
    }

    fn sync_due(&mut self) {
        let index = match &self.stale {
            Some(stale) if stale.serves => &stale.index,
            None if self.index.is_complete() => &self.index,
            _ => return,
        };
        for family in &mut self.families {
            if family.due().is_some_and(|due| due <= Instant::now()) {
                family.sync(index);
            }
        }
        if self.stale.is_none() && self.families.iter().all(|family| family.was_in_force()) {
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
        self.end_stale();
        if self.stale.is_some() {
            return;
        }
        self.enqueue_dirty();
    }

    fn enqueue_dirty(&mut self) {
        let dirty = self.index.take_dirty();
        debug!(services = dirty.len(), "changes taken in");
        if let Some(store) = &mut self.store {
            store.changed();
        }
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
                self.tell_service_ranges(self.index.service_ranges());
            }
        }
    }

    fn tell_service_ranges(&self, ranges: Option<BTreeSet<IpNet>>) {
        self.service_ranges.send_if_modified(|known| {
            let changed = *known != ranges;
            *known = ranges;
            changed
        });
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
                let listed = usable.iter().map(|object| object.key().clone());
                let listed = listed.chain(unreadable.iter().cloned()).collect();
                let mut missing = self.index.missing::<T>(&listed);
                if any {
                    missing.clear();
                }
                self.hold::<T>(&missing);
                for key in &listed {
                    self.held.forget(T::KIND, key);
                }
                let held = &self.held;
                let stays = |key: &ObjectKey| stays(key) || held.holds(T::KIND, key);
                self.index.replace_except::<T>(usable, stays)
            }
            Update::Apply(object) => {
                let (key, state) = self.report(object);
                self.held.forget(T::KIND, &key);
                match state {
                    State::Usable(object) => usize::from(self.index.apply(object)),
                    State::Absent => usize::from(self.index.delete::<T>(&key)),
                    State::Unreadable => 0,
                }
            }
            Update::Delete(key) => usize::from(self.delete::<T>(key)),
            Update::Missing(keys) => {
                self.hold::<T>(&keys);
                let gone = keys.into_iter();
                let gone: Vec<_> = gone.filter(|key| !self.held.holds(T::KIND, key)).collect();
                gone.into_iter()
                    .map(|key| usize::from(self.delete::<T>(key)))
                    .sum()
            }
        }
    }

    fn delete<T: Indexed>(&mut self, key: ObjectKey) -> bool {
        self.held.forget(T::KIND, &key);
        let changed = self.index.delete::<T>(&key);
        self.problems.forget(&(T::KIND, key));
        changed
    }

    /// Holds objects that are missing, if they are most of all there are.
    fn hold<T: Indexed>(&mut self, missing: &[ObjectKey]) {
        let known = self.index.count::<T>();
        let held = self
            .held
            .hold(T::KIND, missing, loss(&self.index, T::KIND, missing));
        if T::KIND == Kind::EndpointSlice {
            for slice in missing {
                if let Some(service) = self.index.owner(slice) {
                    self.held.hold_with(service, slice);
                }
            }
        }
        self.report_held(T::KIND, held, known);
    }

    fn report_held(&self, kind: Kind, held: usize, known: usize) {
        self.metrics.held_objects(kind, self.held.count(kind));
        if held > 0 {
            warn!(
                "{held} of {known} {kind}s are gone at once: they stay for {} s, in case that \
                 is a mistake (--allow-empty)",
                held::HOLD.as_secs()
            );
        }
    }

    /// Deletes what was held for long enough.
    fn release_held(&mut self) {
        let due = self.held.take_due();
        if due.is_empty() {
            return;
        }
        warn!(
            objects = due.len(),
            "what was missing has not come back, it is gone"
        );
        for (kind, key) in due {
            match kind {
                Kind::Service => {
                    let gone = usize::from(self.delete::<Service>(key));
                    self.metrics.service_changes(gone);
                }
                Kind::EndpointSlice => {
                    let gone = usize::from(self.delete::<EndpointSlice>(key));
                    self.metrics.endpoint_changes(gone);
                }
                // They are never held.
                Kind::Node | Kind::ServiceCidr => {}
            }
        }
        for kind in [Kind::Service, Kind::EndpointSlice] {
            self.metrics.held_objects(kind, self.held.count(kind));
        }
        self.enqueue_dirty();
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

/// Returns how much of what is known is missing.
fn loss(index: &Index, kind: Kind, missing: &[ObjectKey]) -> Loss {
    if kind != Kind::EndpointSlice {
        return Loss {
            services: missing.len(),
            known: index.count::<Service>(),
        };
    }
    let mut lost = BTreeMap::<_, usize>::new();
    for service in missing.iter().filter_map(|slice| index.owner(slice)) {
        *lost.entry(service).or_default() += 1;
    }
    let all = lost
        .iter()
        .filter(|(service, lost)| index.slices(service).count() == **lost);
    Loss {
        services: all.count(),
        known: index.services_with_slices(),
    }
}

/// Waits for the end of a writing of the state, if one is going on.
async fn written(store: &mut Option<Store>) {
    match store {
        Some(store) => store.written().await,
        None => std::future::pending().await,
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
