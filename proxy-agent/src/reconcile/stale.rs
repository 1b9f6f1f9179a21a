//! The state from before the start: what is served until the source has listed what is
//! there, and what a list is compared with that may have lost most of it.

use std::time::SystemTime;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Held, Reconciler, loss};
use crate::{
    health::state::{Condition, Subject},
    index::Index,
    last_state::{Remembered, Store},
    model::{EndpointSlice, Kind, ObjectKey, Service},
};

/// A state that may not be true any more.
pub(super) struct Stale {
    pub(super) index: Index,
    /// The tables are made of it: they have nothing newer.
    pub(super) serves: bool,
    saved: SystemTime,
}

impl Reconciler {
    /// Keeps the state on disk, and begins with what is there. It is served only if
    /// the tables hold nothing: what an earlier agent left there is newer.
    #[must_use]
    pub fn with_last_state(mut self, store: Store, serves: bool) -> Self {
        if let Some(state) = store.load() {
            let Remembered {
                saved,
                services,
                slices,
                node,
                service_cidrs,
                ..
            } = state;
            let mut index = self.index.anew();
            index.replace_except(services, |_| false);
            index.replace_except(slices, |_| false);
            if let Some(node) = node {
                index.apply(node);
            }
            if let Some(cidrs) = service_cidrs {
                index.replace_except(cidrs, |_| false);
            }
            self.stale = Some(Stale {
                index,
                serves,
                saved,
            });
        }
        self.store = Some(store);
        self
    }

    /// What is served: nothing before it is known what is there, or was.
    pub(super) fn serving(&self) -> Option<&Index> {
        match &self.stale {
            Some(stale) => stale.serves.then_some(&stale.index),
            None => self.index.is_complete().then_some(&self.index),
        }
    }

    pub(super) fn begin_stale(&mut self) {
        let Some(stale) = self.stale.as_ref().filter(|stale| stale.serves) else {
            return;
        };
        let age = stale.saved.elapsed().unwrap_or_default();
        warn!(
            services = stale.index.count::<Service>(),
            age_seconds = age.as_secs(),
            "serving the last known state until the API server says what is there"
        );
        self.node.send_replace(stale.index.node().cloned());
        self.tell_service_ranges(stale.index.service_ranges());
        self.is_stale.send_replace(true);
        self.health.tell(
            Subject::Stale,
            Some(Condition {
                text:
                    "Services are those from before the start, the API server has not answered yet"
                        .to_owned(),
                fails: true,
            }),
        );
        self.metrics.state_stale(true);
    }

    /// Goes over to what the source has listed, once that is all. What is the same stays
    /// in the tables as it is.
    pub(super) fn end_stale(&mut self) {
        if !self.index.is_complete() {
            return;
        }
        let Some(stale) = self.stale.take() else {
            return;
        };
        self.index.inherit(&stale.index);
        self.keep_missing(&stale.index);
        if !stale.serves {
            return;
        }
        let services = stale.index.services();
        let known = services.map(|service| service.key.clone()).collect();
        for family in &mut self.families {
            family.enqueue(&known);
        }
        info!(
            services = self.index.count::<Service>(),
            "the API server has said what is there, the last known state is over"
        );
        self.node.send_replace(self.index.node().cloned());
        self.tell_service_ranges(self.index.service_ranges());
        self.is_stale.send_replace(false);
        self.health.tell(Subject::Stale, None);
        self.metrics.state_stale(false);
    }

    /// Holds what was known before, if most of it is missing from the first lists.
    fn keep_missing(&mut self, old: &Index) {
        let keys = |objects: Vec<&ObjectKey>| objects.into_iter().cloned().collect();
        let services = keys(self.index.services().map(|object| &object.key).collect());
        let slices = keys(self.index.all_slices().map(|object| &object.key).collect());
        let (known, known_slices) = (old.count::<Service>(), old.count::<EndpointSlice>());
        let missing = old.missing::<Service>(&services);
        let missing_slices = old.missing::<EndpointSlice>(&slices);
        let held = self
            .held
            .hold(Kind::Service, &missing, loss(old, Kind::Service, &missing));
        let lost_slices = loss(old, Kind::EndpointSlice, &missing_slices);
        let held_slices = self
            .held
            .hold(Kind::EndpointSlice, &missing_slices, lost_slices);
        for slice in &missing_slices {
            if let Some(service) = old.owner(slice) {
                self.held.hold_with(service, slice);
            }
        }
        copy_held(&mut self.index, old, &self.held);
        self.report_held(Kind::Service, held, known);
        self.report_held(Kind::EndpointSlice, held_slices, known_slices);
    }

    /// The time at which the state is to be written. While objects are missing, what is
    /// on disk is better.
    pub(super) fn save_due(&self) -> Option<Instant> {
        let is_known = self.stale.is_none() && self.index.is_complete();
        let due = self.store.as_ref().and_then(Store::due);
        due.filter(|_| is_known && self.held.due().is_none())
    }

    pub(super) fn save(&mut self) {
        if self.save_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let index = &self.index;
        if let Some(store) = &mut self.store {
            store.write(|view| {
                view.with_services(index.services(), index.all_slices())
                    .with_node(index.node(), index.service_cidrs())
            });
        }
    }
}

fn copy_held(index: &mut Index, old: &Index, held: &Held) {
    for service in old.services() {
        if held.holds(Kind::Service, &service.key) {
            index.apply(service.clone());
        }
    }
    for slice in old.all_slices() {
        if held.holds(Kind::EndpointSlice, &slice.key) {
            index.apply(slice.clone());
        }
    }
}

#[cfg(test)]
mod tests;
