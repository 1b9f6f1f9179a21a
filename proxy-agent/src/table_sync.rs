//! Programs one family: plans the desired state, does the writes, and re-reads the tables
//! after a failed write.

use std::{collections::BTreeSet, time::Instant};

use anyhow::Context as _;
use proxy_common::family::Family;

use crate::{
    dataplane::Dataplane,
    model::ObjectKey,
    plan::{Plan, Planner, Problem},
    reconcile::{Desired, SyncOutcome, SyncTarget},
};

/// A family's planner and the tables it plans for.
pub struct TableSync<F: Family, D: Dataplane<F>> {
    dataplane: D,
    planner: Planner<F>,
    /// A write failed: the planner no longer knows what the tables hold.
    lost: bool,
    reopen: Box<Reopen<D>>,
}

/// Opens the tables that have taken the place of some; nothing where none do.
type Reopen<D> = dyn Fn() -> anyhow::Result<Option<D>> + Send;

impl<F: Family, D: Dataplane<F>> TableSync<F, D> {
    /// Takes over the tables as they are.
    pub fn new(dataplane: D) -> anyhow::Result<Self> {
        let tables = dataplane
            .read()
            .with_context(|| format!("read the {} tables", F::NAME))?;
        let planner = Planner::adopt(dataplane.capacity(), &tables);
        Ok(Self {
            dataplane,
            planner,
            lost: false,
            reopen: Box::new(|| Ok(None)),
        })
    }

    /// Opens other tables like this where they have taken the place of these.
    #[must_use]
    pub fn reopening(self, open: impl Fn() -> anyhow::Result<D> + Send + 'static) -> Self {
        Self {
            reopen: Box::new(move || open().map(Some)),
            ..self
        }
    }

    /// Reads the tables back, and makes a planner that knows them.
    fn find_back(&mut self) -> anyhow::Result<()> {
        if let Some(tables) = (self.reopen)().context("open the tables again")? {
            self.dataplane = tables;
        }
        let tables = self.dataplane.read().context("read the tables back")?;
        self.planner = Planner::adopt(self.dataplane.capacity(), &tables);
        self.lost = false;
        Ok(())
    }

    /// Does the writes of a plan.
    fn write(&mut self, plan: &Plan<F>) -> anyhow::Result<usize> {
        for write in &plan.writes {
            if let Err(error) = self.dataplane.write(write) {
                self.lost = true;
                return Err(anyhow::Error::new(error));
            }
        }
        Ok(plan.writes.len())
    }

    /// Brings the tables to what is desired of these Services; if `complete`,
    /// to nothing else.
    fn apply(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome {
        let mut outcome = SyncOutcome::default();
        // First those that make room for those that come.
        let leaving = self.leaving(services, complete, desired);
        let others = services.difference(&leaving);
        for key in leaving.iter().chain(others) {
            let plan = self.planner.update(key, &desired(key), Instant::now());
            match self.write(&plan) {
                Ok(writes) => outcome.writes += writes,
                Err(error) => {
                    outcome.error = Some(error.context(format!("program Service {key}")));
                    return outcome;
                }
            }
            let full = plan.problems.iter().filter(|problem| is_full(problem));
            let again = full.map(|problem| problem.port().service.clone());
            outcome.retry.extend(again);
            outcome.problems.extend(plan.problems);
        }
        if complete {
            let plan = self.planner.remove_orphans();
            match self.write(&plan) {
                Ok(writes) => outcome.writes += writes,
                Err(error) => {
                    outcome.error = Some(error.context("remove frontends without Service"));
                }
            }
        }
        outcome
    }

    /// Clears bits of the filters that neither tables nor flows need. Flows are
    /// read only if there are any such bits.
    fn clear_filters(&mut self) -> anyhow::Result<()> {
        let read_at = Instant::now();
        let mut excess = self.planner.excess(read_at);
        if excess.is_empty() {
            return Ok(());
        }
        self.dataplane.visit_flows(&mut |flow| excess.keep(flow))?;
        let plan = self.planner.clear_idle(&excess, read_at);
        self.write(&plan).map(drop)
    }

    /// The Services that have something in the tables and should have nothing:
    /// of these, and if `complete` of all others.
    fn leaving(
        &self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> BTreeSet<ObjectKey> {
        let these = services
            .iter()
            .filter(|key| self.planner.holds(key) && desired(key).is_empty());
        let mut leaving: BTreeSet<_> = these.cloned().collect();
        if complete {
            let holders = self.planner.services();
            leaving.extend(holders.filter(|key| !services.contains(key)).cloned());
        }
        leaving
    }
}

/// A problem that goes away when other Services give up room.
fn is_full(problem: &Problem) -> bool {
    matches!(problem, Problem::TableFull { .. })
}

impl<F: Family, D: Dataplane<F>> SyncTarget<F> for TableSync<F, D> {
    fn sync(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome {
        if self.lost
            && let Err(error) = self.find_back()
        {
            return SyncOutcome {
                error: Some(error),
                ..SyncOutcome::default()
            };
        }
        self.apply(services, complete, desired)
    }

    fn reopen(&mut self) {
        self.lost = true;
    }

    fn audit(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        desired: &mut Desired<F>,
    ) -> anyhow::Result<usize> {
        let tables = self.dataplane.read().context("read the tables")?;
        let actual = Planner::adopt(self.dataplane.capacity(), &tables);
        let kept = std::mem::replace(&mut self.planner, actual);
        let outcome = self.apply(services, true, desired);
        if let Some(error) = outcome.error {
            return Err(error.context("repair the tables"));
        }
        if outcome.writes == 0 {
            // Nothing was different, and the old planner also knows what is
            // not to be used yet.
            self.planner = kept;
            self.planner.adopt_filters(&tables.filters);
        }
        let repaired = self.planner.repair_filters();
        let repaired = self.write(&repaired).context("repair the filters")?;
        self.clear_filters().context("clear the filters")?;
        Ok(outcome.writes + repaired)
    }
}

#[cfg(test)]
mod tests;
