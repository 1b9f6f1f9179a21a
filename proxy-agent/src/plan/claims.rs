//! Front ends and who owns them.
//!
//! Every Service port claims the front ends it wants. The first claim owns the
//! front end; the others wait until it is withdrawn.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::{
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::BePort,
    prefilter,
};

use crate::{
    model::ServicePortName,
    plan::{Plan, Planner, problem::Problem, write::Write},
    select::DesiredPort,
};

/// Who wants a front end.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) owner: ServicePortName,
    /// All that want it, with the flags they want, the owner included.
    pub(super) wanted: BTreeMap<ServicePortName, u8>,
}

impl<F: Family> Planner<F> {
    /// Withdraws all claims of a port; returns the front ends they were for.
    pub(super) fn release(&mut self, name: &ServicePortName) -> BTreeSet<FrontendKey<F::Addr>> {
        let Some(port) = self.ports.get_mut(name) else {
            return BTreeSet::new();
        };
        let keys = std::mem::take(&mut port.frontends);
        for key in &keys {
            self.withdraw(name, key);
        }
        keys
    }

    fn withdraw(&mut self, name: &ServicePortName, key: &FrontendKey<F::Addr>) {
        if let Some(claim) = self.claims.get_mut(key) {
            claim.wanted.remove(name);
            if claim.owner == *name
                && let Some(next) = claim.wanted.keys().next()
            {
                claim.owner = next.clone();
            }
            if claim.wanted.is_empty() {
                self.claims.remove(key);
            }
        }
    }

    /// Brings a port's claims up to date; returns the front ends concerned.
    pub(super) fn claim(&mut self, desired: &DesiredPort<F>) -> BTreeSet<FrontendKey<F::Addr>> {
        let Some(port) = self.ports.get_mut(&desired.name) else {
            return BTreeSet::new();
        };
        let wanted: BTreeMap<FrontendKey<F::Addr>, u8> = desired
            .frontends
            .iter()
            .map(|frontend| {
                let key = FrontendKey::new(
                    F::addr(frontend.ip),
                    BePort::new(frontend.port),
                    desired.name.protocol,
                );
                let flags = if frontend.local_set {
                    Frontend::LOCAL_SET
                } else {
                    0
                };
                (key, flags)
            })
            .collect();
        let before = std::mem::replace(&mut port.frontends, wanted.keys().copied().collect());
        let mut touched = before.clone();
        for key in before.iter().filter(|key| !wanted.contains_key(key)) {
            self.withdraw(&desired.name, key);
        }
        for (key, flags) in wanted {
            touched.insert(key);
            self.claims
                .entry(key)
                .or_insert_with(|| Claim {
                    owner: desired.name.clone(),
                    wanted: BTreeMap::new(),
                })
                .wanted
                .insert(desired.name.clone(), flags);
        }
        touched
    }

    /// Makes `FRONTENDS` agree with the claims on these keys. New addresses
    /// come before their ports, so that a port is never there alone.
    pub(super) fn settle_claims(
        &mut self,
        keys: BTreeSet<FrontendKey<F::Addr>>,
        plan: &mut Plan<F>,
    ) {
        let mut addresses = BTreeSet::new();
        for key in keys {
            addresses.insert(key.addr);
            let wanted = self.claims.get(&key).and_then(|claim| {
                let port = self.ports.get(&claim.owner)?;
                Some(Frontend {
                    service: port.row,
                    flags: *claim.wanted.get(&claim.owner)?,
                    kind: Frontend::CLUSTER_IP,
                    tag: key.tag(),
                })
            });
            self.settle_frontend(key, wanted, plan);
        }
        for addr in addresses {
            self.settle_address(addr, plan);
        }
    }

    /// Makes the entry of an address, which answers for its unknown ports,
    /// agree with the ports.
    pub(super) fn settle_address(&mut self, addr: F::Addr, plan: &mut Plan<F>) {
        let key = FrontendKey::address(addr);
        let used = self
            .frontends
            .range(key..)
            .take_while(|(other, _)| other.addr == addr)
            .any(|(other, _)| other.port != BePort::ZERO);
        let wanted = used.then(|| Frontend {
            service: Frontend::NO_SERVICE,
            flags: 0,
            kind: Frontend::CLUSTER_IP,
            tag: key.tag(),
        });
        self.settle_frontend(key, wanted, plan);
    }

    fn settle_frontend(
        &mut self,
        key: FrontendKey<F::Addr>,
        wanted: Option<Frontend>,
        plan: &mut Plan<F>,
    ) {
        let current = self.frontends.get(&key).copied();
        match wanted {
            Some(frontend) if current != Some(frontend) => {
                if current.is_none() && self.frontends.len() >= self.capacity.frontends as usize {
                    if let Some(claim) = self.claims.get(&key) {
                        plan.problems.push(Problem::TableFull {
                            port: claim.owner.clone(),
                            table: "FRONTENDS",
                            capacity: self.capacity.frontends,
                        });
                    }
                    return;
                }
                let bit = prefilter::frontend_bit(&key.addr);
                self.set_filter(prefilter::FRONTENDS, bit, plan);
                self.frontends.insert(key, frontend);
                plan.writes.push(Write::Frontend { key, frontend });
            }
            None if current.is_some() => {
                self.frontends.remove(&key);
                plan.writes.push(Write::DeleteFrontend { key });
            }
            _ => {}
        }
    }

    pub(super) fn report_taken(&self, name: &ServicePortName, plan: &mut Plan<F>) {
        let Some(port) = self.ports.get(name) else {
            return;
        };
        for key in &port.frontends {
            if let Some(claim) = self.claims.get(key)
                && claim.owner != *name
            {
                let ip = F::ip(key.addr).into();
                plan.problems.push(Problem::FrontendTaken {
                    port: name.clone(),
                    frontend: std::net::SocketAddr::new(ip, key.port.get()).to_string(),
                    owner: claim.owner.clone(),
                });
            }
        }
    }
}
