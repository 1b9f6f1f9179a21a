//! Programs one family: plans what is desired, does the writes, and finds its
//! way back after a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::Context as _;
use proxy_common::family::Family;

use crate::{
    dataplane::Dataplane,
    model::ObjectKey,
    plan::{Plan, Planner, Problem},
    reconcile::{Program, SyncOutcome},
    select::DesiredPort,
};

/// A family's planner and the tables it plans for.
pub struct Programmer<F: Family, D: Dataplane<F>> {
    dataplane: D,
    planner: Planner<F>,
    /// What the tables should hold; the planner only knows how they hold it.
    desired: BTreeMap<ObjectKey, Vec<DesiredPort<F>>>,
    /// A write failed: the planner no longer knows what the tables hold.
    lost: bool,
}

impl<F: Family, D: Dataplane<F>> Programmer<F, D> {
    /// Takes over the tables as they are.
    pub fn new(dataplane: D) -> anyhow::Result<Self> {
        let tables = dataplane
            .read()
            .with_context(|| format!("read the {} tables", F::NAME))?;
        let planner = Planner::adopt(dataplane.capacity(), &tables);
        Ok(Self {
            dataplane,
            planner,
            desired: BTreeMap::new(),
            lost: false,
        })
    }

    /// Reads the tables back, after which the planner is right again.
    fn find_back(&mut self) -> anyhow::Result<()> {
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

    /// Brings the tables to what is desired of these Services, in that order:
    /// those that go have to make room for those that come.
    fn apply(&mut self, services: Vec<ObjectKey>, complete: bool) -> SyncOutcome {
        let mut outcome = SyncOutcome::default();
        let now = Instant::now();
        for key in services {
            let ports = self.desired.get(&key).map_or(&[][..], Vec::as_slice);
            let plan = self.planner.update(&key, ports, now);
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
            let plan = self.planner.remove_strays();
            match self.write(&plan) {
                Ok(writes) => outcome.writes += writes,
                Err(error) => {
                    outcome.error = Some(error.context("remove front ends without Service"));
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

    /// Every Service that has, or should have, anything in the tables.
    fn all(&self) -> Vec<ObjectKey> {
        let gone = self
            .planner
            .services()
            .filter(|key| !self.desired.contains_key(key));
        let mut all: Vec<_> = gone.cloned().collect();
        all.extend(self.desired.keys().cloned());
        all
    }
}

/// A problem that goes away when other Services give up room.
fn is_full(problem: &Problem) -> bool {
    matches!(problem, Problem::TableFull { .. })
}

impl<F: Family, D: Dataplane<F>> Program<F> for Programmer<F, D> {
    fn sync(
        &mut self,
        desired: BTreeMap<ObjectKey, Vec<DesiredPort<F>>>,
        complete: bool,
    ) -> SyncOutcome {
        let keys: BTreeSet<_> = desired.keys().cloned().collect();
        if complete {
            self.desired.clear();
        }
        for (key, ports) in desired {
            if ports.is_empty() {
                self.desired.remove(&key);
            } else {
                self.desired.insert(key, ports);
            }
        }
        let complete = complete || self.lost;
        if self.lost
            && let Err(error) = self.find_back()
        {
            return SyncOutcome {
                error: Some(error),
                ..SyncOutcome::default()
            };
        }
        let services = if complete {
            self.all()
        } else {
            let (mut services, come): (Vec<_>, Vec<_>) = keys
                .into_iter()
                .partition(|key| !self.desired.contains_key(key));
            services.extend(come);
            services
        };
        self.apply(services, complete)
    }

    fn audit(&mut self) -> anyhow::Result<usize> {
        let tables = self.dataplane.read().context("read the tables")?;
        let actual = Planner::adopt(self.dataplane.capacity(), &tables);
        let kept = std::mem::replace(&mut self.planner, actual);
        let outcome = self.apply(self.all(), true);
        if let Some(error) = outcome.error {
            return Err(error.context("repair the tables"));
        }
        if outcome.writes == 0 {
            // Nothing was different, and the old planner also knows what is
            // not to be used yet.
            self.planner = kept;
            self.planner.adopt_filters(&tables.filters);
        }
        let mended = self.planner.mend_filters();
        let mended = self.write(&mended).context("repair the filters")?;
        self.clear_filters().context("clear the filters")?;
        Ok(outcome.writes + mended)
    }
}

#[cfg(test)]
mod tests;
