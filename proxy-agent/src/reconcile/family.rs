//! One family's side of the reconciler: what is to be synced, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    rc::Rc,
    time::{Duration, SystemTime},
};

use proxy_common::family::Family;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    SyncOutcome, SyncTarget, Trigger,
    growth::{Demand, Growth},
    pace::{self, Pace},
};
use crate::{
    health::{
        Health,
        state::{Condition, Subject},
    },
    index::Index,
    metrics::{Metrics, SyncKind},
    model::{IpFamily, ObjectKey, Service},
    notice::Ledger,
    plan::Problem,
    retry::Retry,
    select::{DesiredPort, FrontendKind, WhenEmpty, select_service},
    sys,
};

/// A family's queue, whichever family it is.
pub trait Queue {
    /// The family.
    fn family(&self) -> IpFamily;

    /// Marks Services that may have changed.
    fn enqueue(&mut self, services: &BTreeSet<ObjectKey>);

    /// Remembers when a change happened that the next sync programs.
    fn note(&mut self, trigger: &Trigger);

    /// The time of the next sync; `None` if there is nothing to do.
    fn due(&self) -> Option<Instant>;

    /// Syncs what is due. Failures are kept for a later sync.
    fn sync(&mut self, index: &Index);

    /// Compares the real tables with what they should be.
    fn audit(&mut self, index: &Index);

    /// Other tables have taken the place of those in use: a sync of all Services into
    /// them is due.
    fn reopen(&mut self);

    /// Returns whether all changes are in force, as far as there is room for them.
    fn is_up_to_date(&self) -> bool;

    /// Returns whether a sync of all Services has succeeded.
    fn was_in_force(&self) -> bool;
}

/// The queue of one family, and the tables it feeds.
pub struct FamilyQueue<F: Family, P> {
    program: P,
    /// Services to sync.
    pending: BTreeSet<ObjectKey>,
    /// All Services are to be synced: at first, and after a failure.
    complete: bool,
    first: bool,
    pace: Pace,
    /// Services that did not fit, and when to look at them again.
    retry: BTreeSet<ObjectKey>,
    retry_pace: Retry,
    problems: Ledger<ObjectKey, Problem>,
    /// Ports of each Service that have endpoints, but none for a Local policy.
    without_local: BTreeMap<ObjectKey, WithoutLocal>,
    triggers: Vec<SystemTime>,
    metrics: Metrics,
    health: Health,
    growth: Option<Rc<Growth>>,
    family: PhantomData<F>,
}

impl<F: Family, P: SyncTarget<F>> FamilyQueue<F, P> {
    /// A queue that starts with a complete sync.
    pub fn new(
        program: P,
        min_sync: Duration,
        metrics: Metrics,
        health: Health,
        growth: Option<Rc<Growth>>,
    ) -> Self {
        Self {
            program,
            pending: BTreeSet::new(),
            complete: true,
            first: true,
            pace: Pace::new(min_sync, Instant::now()),
            retry: BTreeSet::new(),
            retry_pace: Retry::new(pace::BACKOFF),
            problems: Ledger::default(),
            without_local: BTreeMap::new(),
            triggers: Vec::new(),
            metrics,
            health,
            growth,
            family: PhantomData,
        }
    }

    /// The Services of the next sync.
    fn take_due(&mut self, index: &Index, now: Instant) -> BTreeSet<ObjectKey> {
        let mut due = std::mem::take(&mut self.pending);
        if self.complete {
            due = all(index);
        } else if self.retry_pace.due().is_some_and(|at| at <= now) {
            due.append(&mut self.retry);
        }
        due
    }

    /// Asks for larger tables if some are full, and leaves out the problems that are
    /// solved by that.
    fn ask_for_room(&self, index: &Index, problems: &mut Vec<Problem>) {
        let full: BTreeSet<_> = problems.iter().filter_map(Problem::full_table).collect();
        let Some(growth) = self.growth.as_ref().filter(|_| !full.is_empty()) else {
            return;
        };
        let demand = || {
            let mut demand = Demand::default();
            for service in index.services() {
                for port in select::<F>(index, &service.key) {
                    demand.add(&port);
                }
            }
            demand
        };
        if growth.ask(&full, demand) {
            problems.retain(|problem| problem.full_table().is_none());
        }
    }

    /// Takes note of problems; logs the new ones. `done` are the Services that
    /// have no others.
    fn report(&mut self, done: &BTreeSet<ObjectKey>, problems: Vec<Problem>) {
        let mut by_service: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for service in done {
            by_service.entry(service.clone()).or_default();
        }
        for problem in problems {
            let service = problem.port().service.clone();
            by_service.entry(service).or_default().push(problem);
        }
        for (service, problems) in by_service {
            for problem in self.problems.report(&service, problems) {
                warn!(family = F::NAME, %service, "{problem}");
                self.metrics.table_problem::<F>(problem.reason());
            }
        }
        self.tell_of_full_tables();
    }

    /// Tells health checks which Services the tables do not hold. The others are served, so
    /// the node is not given up for them: all nodes have the same.
    fn tell_of_full_tables(&self) {
        let is_full = |problem: &Problem| problem.full_table().is_some();
        let without_room = self
            .problems
            .iter()
            .filter(|(_, known)| known.iter().any(is_full));
        let mut without_room = without_room.map(|(service, _)| service);
        let condition = without_room.next().map(|first| {
            let more = match without_room.count() {
                0 => String::new(),
                more => format!(" and {more} more Services"),
            };
            Condition {
                text: format!(
                    "{}: the tables have no room for all of {first}{more}",
                    F::NAME
                ),
                fails: false,
            }
        });
        let subject = Subject::Tables(IpFamily::by_type::<F>());
        self.health.tell(subject, condition);
    }

    /// Tells health checks how many rows the last audit had to repair.
    fn tell_of_repairs(&self, repairs: usize) {
        let condition = (repairs > 0).then(|| Condition {
            text: format!(
                "{}: someone else writes to the tables, the last audit repaired {repairs} rows",
                F::NAME
            ),
            fails: false,
        });
        let subject = Subject::OtherWriter(IpFamily::by_type::<F>());
        self.health.tell(subject, condition);
    }

    /// Counts the ports that drop because of a Local policy.
    fn count_without_local(&self) {
        let sum = |count: fn(&WithoutLocal) -> usize| self.without_local.values().map(count).sum();
        self.metrics
            .without_local_endpoints::<F>("internal", sum(|ports| ports.internal));
        self.metrics
            .without_local_endpoints::<F>("external", sum(|ports| ports.external));
    }

    /// Services that did not fit wait for a later sync.
    fn schedule_retries(&mut self, synced: &BTreeSet<ObjectKey>, retry: BTreeSet<ObjectKey>) {
        self.retry.retain(|service| !synced.contains(service));
        if !retry.is_empty() {
            self.retry.extend(retry);
            self.retry_pace.failed();
        }
        if self.retry.is_empty() {
            self.retry_pace.succeeded();
        }
    }

    fn failed(&mut self, error: &anyhow::Error) {
        self.complete = true;
        self.health.queued::<F>(Instant::now());
        self.triggers.clear();
        let delay = self.pace.failed(Instant::now());
        self.metrics.sync_failed::<F>();
        warn!(
            family = F::NAME,
            retry_seconds = delay.as_secs_f32(),
            "sync failed, the tables may be incomplete: {error:#}"
        );
    }

    fn succeeded(&mut self, services: usize, writes: usize, duration: Duration) {
        self.complete = false;
        self.pace.succeeded(Instant::now());
        self.metrics.synced::<F>(self.triggers.drain(..));
        if self.first {
            self.first = false;
            sys::allocator::release_memory();
            info!(
                family = F::NAME,
                services,
                writes,
                ?duration,
                "first sync done"
            );
        } else {
            debug!(family = F::NAME, services, writes, ?duration, "sync done");
        }
    }
}

impl<F: Family, P: SyncTarget<F>> Queue for FamilyQueue<F, P> {
    fn family(&self) -> IpFamily {
        IpFamily::by_type::<F>()
    }

    fn enqueue(&mut self, services: &BTreeSet<ObjectKey>) {
        if !services.is_empty() {
            self.metrics.sync_queued::<F>();
            self.health.queued::<F>(Instant::now());
            self.pending.extend(services.iter().cloned());
        }
    }

    fn note(&mut self, trigger: &Trigger) {
        if trigger.family.name() == F::NAME {
            self.triggers.push(trigger.time);
        }
    }

    fn due(&self) -> Option<Instant> {
        if self.complete || !self.pending.is_empty() {
            Some(self.pace.earliest())
        } else {
            self.retry_pace.due().map(|at| at.max(self.pace.earliest()))
        }
    }

    fn sync(&mut self, index: &Index) {
        let start = Instant::now();
        let synced = self.take_due(index, start);
        let without_local = &mut self.without_local;
        if self.complete {
            without_local.retain(|service, _| synced.contains(service));
        }
        let mut desired = |service: &ObjectKey| {
            let ports = select(index, service);
            match WithoutLocal::of(&ports) {
                none if none == WithoutLocal::default() => without_local.remove(service),
                some => without_local.insert(service.clone(), some),
            };
            ports
        };
        let SyncOutcome {
            writes,
            mut problems,
            retry,
            error,
        } = self.program.sync(&synced, self.complete, &mut desired);
        self.count_without_local();
        self.ask_for_room(index, &mut problems);

        let duration = start.elapsed();
        let kind = if self.complete {
            SyncKind::Full
        } else {
            SyncKind::Partial
        };
        self.metrics.sync_duration::<F>(kind, duration);
        self.metrics.writes::<F>(writes);
        self.schedule_retries(&synced, retry);
        if let Some(error) = error {
            // How far it came is unknown, so nobody is done.
            self.report(&BTreeSet::new(), problems);
            self.failed(&error);
        } else {
            if self.complete {
                self.problems.retain(|service| synced.contains(service));
            }
            self.report(&synced, problems);
            self.health.synced::<F>(index, &synced, self.complete);
            self.succeeded(synced.len(), writes, duration);
        }
    }

    fn reopen(&mut self) {
        self.program.reopen();
        self.complete = true;
    }

    fn is_up_to_date(&self) -> bool {
        !self.complete && self.pending.is_empty()
    }

    fn was_in_force(&self) -> bool {
        !self.first
    }

    fn audit(&mut self, index: &Index) {
        // What is not in force yet would pass for damage.
        if !self.complete && !self.pending.is_empty() {
            self.sync(index);
        }
        // A complete sync is due anyway, and until then differences are known.
        if self.complete {
            return;
        }
        let mut desired = |service: &ObjectKey| select(index, service);
        match self.program.audit(&all(index), &mut desired) {
            Ok(0) => {
                debug!(family = F::NAME, "tables are as they should be");
                self.tell_of_repairs(0);
            }
            Ok(repairs) => {
                self.tell_of_repairs(repairs);
                warn!(
                    family = F::NAME,
                    repairs, "tables were changed by someone else, repaired"
                );
                self.metrics.repaired::<F>(repairs);
            }
            Err(error) => self.failed(&error),
        }
    }
}

fn all(index: &Index) -> BTreeSet<ObjectKey> {
    let services = index.services();
    services.map(|service| service.key.clone()).collect()
}

/// Selects the ports of a Service that one family's tables should hold.
fn select<F: Family>(index: &Index, service: &ObjectKey) -> Vec<DesiredPort<F>> {
    let select = |service: &Service| {
        let slices = index.slices(&service.key);
        select_service(service, slices, index.node_context())
    };
    index.service(service).map(select).unwrap_or_default()
}

/// Numbers of ports that drop for lack of an endpoint on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WithoutLocal {
    /// Because of internalTrafficPolicy.
    internal: usize,
    /// Because of externalTrafficPolicy.
    external: usize,
}

impl WithoutLocal {
    fn of<F: Family>(ports: &[DesiredPort<F>]) -> Self {
        let lacking = |internal| {
            let ports = ports.iter().filter(|port| {
                port.local_empty == WhenEmpty::Drop
                    && !port.endpoints.values().any(|used| used.local)
                    && port.frontends.iter().any(|frontend| {
                        let is_internal = frontend.kind == FrontendKind::ClusterIp;
                        frontend.local_set && is_internal == internal
                    })
            });
            ports.count()
        };
        Self {
            internal: lacking(true),
            external: lacking(false),
        }
    }
}
