//! What the proxy knows of its own health. Pure: times are given.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::model::{IpFamily, Leaving, node::TO_BE_DELETED};

/// A family is healthy as long as no change waits for longer than this: twice
/// kube-proxy's sync period (S106).
const HEALTHY_WITHIN: Duration = Duration::from_mins(1);
/// Time after which a loop that has not turned counts as dead.
const ALIVE_WITHIN: Duration = Duration::from_mins(1);

/// The state of this node's Node object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    /// It has not been seen, or is gone.
    #[default]
    Missing,
    Here(Option<Leaving>),
}

/// The subjects that conditions are about; each has one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Devices,
    Pins,
    Mount,
    Stale,
    Tables(IpFamily),
    OtherWriter(IpFamily),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// In plain words.
    pub text: String,
    /// Whether this node cannot serve what it is sent.
    pub fails: bool,
}

/// One family's side.
#[derive(Clone, Copy, Debug, Default)]
struct FamilyState {
    /// The time of its oldest change that is not in force.
    waiting: Option<Instant>,
    /// The time when it last reported that nothing is left to do.
    updated: Option<Instant>,
    /// Whether all Services have been in force once.
    synced: bool,
}

/// What is known.
#[derive(Debug, Default)]
pub struct State {
    families: BTreeMap<IpFamily, FamilyState>,
    node: NodeState,
    /// The name of the Node object, if there must be one.
    node_name: Option<String>,
    conditions: BTreeMap<Subject, Condition>,
    /// Whether what an earlier agent left serves until the first sync.
    adopted: bool,
    attached: bool,
    turned: Option<Instant>,
}

impl State {
    /// The loop starts, which counts as a report of each family (S106).
    pub fn start(&mut self, families: impl Iterator<Item = IpFamily>, now: Instant) {
        for family in families {
            self.families.entry(family).or_default().updated = Some(now);
        }
        self.turned = Some(now);
    }

    /// Tables and programs of an earlier agent are in place.
    pub fn adopt(&mut self) {
        self.adopted = true;
    }

    /// The programs are on the devices.
    pub fn attach(&mut self) {
        self.attached = true;
    }

    /// The loop is alive.
    pub fn turn(&mut self, now: Instant) {
        self.turned = Some(now);
    }

    /// Load balancers shall send nothing here without a Node object of that name.
    pub fn need_node(&mut self, name: &str) {
        self.node_name = Some(name.to_owned());
    }

    pub fn set_node(&mut self, node: NodeState) {
        self.node = node;
    }

    /// The reason why load balancers shall send nothing here, if there is one (S108).
    fn node_reason(&self) -> Option<String> {
        match self.node {
            NodeState::Missing => {
                let name = self.node_name.as_deref()?;
                Some(format!("there is no Node named {name}"))
            }
            NodeState::Here(None) => None,
            NodeState::Here(Some(Leaving::Deleted)) => Some("the Node is being deleted".to_owned()),
            NodeState::Here(Some(Leaving::ToBeDeleted)) => {
                Some(format!("the Node has the taint {TO_BE_DELETED}"))
            }
        }
    }

    /// Changes wait to be programmed. The first one counts until all are.
    pub fn queue(&mut self, family: IpFamily, now: Instant) {
        let family = self.families.entry(family).or_default();
        family.waiting.get_or_insert(now);
    }

    /// All changes of a family are in force.
    pub fn sync(&mut self, family: IpFamily, now: Instant) {
        *self.families.entry(family).or_default() = FamilyState {
            waiting: None,
            updated: Some(now),
            synced: true,
        };
    }

    /// Sets what is wrong with a subject, or that nothing is.
    pub fn tell(&mut self, subject: Subject, condition: Option<Condition>) {
        match condition {
            Some(condition) => drop(self.conditions.insert(subject, condition)),
            None => drop(self.conditions.remove(&subject)),
        }
    }

    /// The state at a time, which is `wall` by the clock.
    pub fn report(&self, now: Instant, wall: SystemTime) -> Report {
        let by_clock = |time| {
            wall.checked_sub(now.duration_since(time))
                .unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut reasons = Vec::new();
        let mut families = BTreeMap::new();
        for (&family, state) in &self.families {
            let waits = state.waiting.map(|since| now.duration_since(since));
            // A family that never reported has not started (S106).
            let late = waits.filter(|waits| state.updated.is_some() && *waits >= HEALTHY_WITHIN);
            if let Some(late) = late {
                let late = late.as_secs();
                reasons.push(format!(
                    "{family}: changes have been waiting for {late} s to be programmed"
                ));
            }
            if let Some(updated) = state.updated {
                let report = FamilyReport {
                    last_updated: by_clock(updated),
                    is_healthy: late.is_none(),
                };
                families.insert(family, report);
            }
        }
        let mut fails = false;
        for condition in self.unready().chain(self.conditions.values().cloned()) {
            fails |= condition.fails;
            reasons.push(condition.text);
        }
        Report {
            is_live: families.values().all(|family| family.is_healthy),
            last_updated: families.values().map(|family| family.last_updated).max(),
            families,
            fails,
            node: self.node_reason(),
            reasons,
        }
    }

    /// What keeps Services from working here since the start.
    fn unready(&self) -> impl Iterator<Item = Condition> {
        let meanwhile = if self.adopted {
            ", what an earlier agent left stays in force"
        } else {
            ""
        };
        let fails = !self.adopted;
        let missing = self.families.iter().filter(|(_, state)| !state.synced);
        let syncs = missing.map(move |(family, _)| Condition {
            text: format!("{family}: the first sync is missing{meanwhile}"),
            fails,
        });
        let programs = (!self.attached).then(|| Condition {
            text: format!("the programs are not on the devices yet{meanwhile}"),
            fails,
        });
        syncs.chain(programs)
    }

    /// The reasons why Services do not work here as they should; none if they do.
    pub fn is_unready(&self) -> Vec<String> {
        let mut reasons: Vec<_> = self.unready().map(|condition| condition.text).collect();
        if self.families.is_empty() {
            reasons.push("the reconcile loop has not started".to_owned());
        }
        let failing = self.conditions.values().filter(|condition| condition.fails);
        reasons.extend(failing.map(|condition| condition.text.clone()));
        reasons
    }

    /// The time since the loop last turned, if that is too long.
    pub fn dead_for(&self, now: Instant) -> Option<Duration> {
        let since = now.duration_since(self.turned?);
        (since >= ALIVE_WITHIN).then_some(since)
    }
}

/// What health checks answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The families that have reported at least once.
    pub families: BTreeMap<IpFamily, FamilyReport>,
    pub last_updated: Option<SystemTime>,
    /// Whether no family has left changes waiting for too long (S106).
    pub is_live: bool,
    /// Whether this node cannot serve what it is sent.
    fails: bool,
    /// The reason why load balancers shall send nothing to this node, if there is one.
    pub node: Option<String>,
    /// All else that is not as it should be.
    pub reasons: Vec<String>,
}

/// One family's side of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyReport {
    pub last_updated: SystemTime,
    pub is_healthy: bool,
}

impl Report {
    /// Returns whether the proxy serves, whatever the Node says.
    pub fn is_healthy(&self) -> bool {
        self.is_live && !self.fails
    }
}

#[cfg(test)]
mod tests;
