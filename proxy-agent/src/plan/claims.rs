//! Frontends and who owns them.
//!
//! Every Service port claims the frontends it wants. The first claim owns the
//! frontend; the others wait until it is withdrawn. But an address that a
//! Service has as its cluster IP is not another's to have as an external IP,
//! whoever came first: anybody may write that into a Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proxy_common::{
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::Address,
    table::Table,
};

use crate::{
    model::ServicePortName,
    plan::{Plan, Planner, is_address, problem::Problem, write::Write},
    select::DesiredPort,
};

/// The ports that want a frontend: first its owner, then those that wait, by name. Mostly
/// one, so a vector is all it takes.
#[derive(Clone, Debug)]
pub(super) struct Claim(Vec<(ServicePortName, Wanted)>);

/// The properties a port wants of a frontend: see [`Frontend::flags`] and
/// [`Frontend::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) flags: u8,
    pub(super) kind: u8,
}

impl Claim {
    /// The claim of the first that wants the frontend.
    pub(super) fn of(owner: ServicePortName, wanted: Wanted) -> Self {
        Self(vec![(owner, wanted)])
    }

    /// Returns the port that has the frontend, and the properties it wants.
    pub(super) fn owner(&self) -> Option<&(ServicePortName, Wanted)> {
        self.0.first()
    }

    fn is_owner(&self, name: &ServicePortName) -> bool {
        self.owner().is_some_and(|(owner, _)| owner == name)
    }

    /// Notes a claim. Returns the owner that it takes the frontend from.
    fn add(&mut self, name: &ServicePortName, wanted: Wanted) -> Option<ServicePortName> {
        let before = self.owner().map(|(owner, _)| owner.clone());
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| known == name) {
            *known = wanted;
        } else {
            self.0.push((name.clone(), wanted));
        }
        self.elect();
        before.filter(|before| !self.is_owner(before))
    }

    fn withdraw(&mut self, name: &ServicePortName) {
        self.0.retain(|(known, _)| known != name);
        self.elect();
    }

    /// Keeps the owner, unless another has more right to the frontend, and
    /// those that wait by name.
    fn elect(&mut self) {
        let rank = |(_, how): &(ServicePortName, Wanted)| precedence(how.kind);
        let Some(current) = self.0.first().map(rank) else {
            return;
        };
        self.0[1..].sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let best = (1..self.0.len()).min_by_key(|index| rank(&self.0[*index]));
        if let Some(best) = best
            && rank(&self.0[best]) < current
        {
            self.0[..=best].rotate_right(1);
            self.0[1..].sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        }
    }
}

impl<F: Family> Planner<F> {
    /// Withdraws all claims of a port; returns the frontends they were for.
    pub(super) fn release(&mut self, name: &ServicePortName) -> BTreeSet<FrontendKey<F::Addr>> {
        let Some(port) = self.ports.get_mut(name) else {
            return BTreeSet::new();
        };
        let keys = std::mem::take(&mut port.frontends);
        for key in &keys {
            self.withdraw(name, key);
        }
        keys.into_iter().collect()
    }

    fn withdraw(&mut self, name: &ServicePortName, key: &FrontendKey<F::Addr>) {
        if let Some(claim) = self.claims.get_mut(key) {
            claim.withdraw(name);
            if claim.owner().is_none() {
                self.claims.remove(key);
            }
        }
    }

    /// Brings a port's claims up to date; returns the frontends concerned.
    pub(super) fn claim(
        &mut self,
        desired: &DesiredPort<F>,
        plan: &mut Plan<F>,
    ) -> BTreeSet<FrontendKey<F::Addr>> {
        let Some(port) = self.ports.get_mut(&desired.name) else {
            return BTreeSet::new();
        };
        let mut wanted = BTreeMap::new();
        for frontend in &desired.frontends {
            // Of two with one key the first counts.
            wanted
                .entry(frontend.key(desired.name.protocol))
                .or_insert(Wanted {
                    flags: frontend.flags(),
                    kind: frontend.kind.code(),
                });
        }
        let mut keys = Vec::with_capacity(wanted.len());
        keys.extend(wanted.keys().copied());
        let before = std::mem::replace(&mut port.frontends, keys);
        let mut touched: BTreeSet<_> = before.iter().copied().collect();
        for key in before.iter().filter(|key| !wanted.contains_key(key)) {
            self.withdraw(&desired.name, key);
        }
        for (key, how) in wanted {
            touched.insert(key);
            let claim = self
                .claims
                .entry(key)
                .or_insert_with(|| Claim::of(desired.name.clone(), how));
            if let Some(before) = claim.add(&desired.name, how) {
                plan.problems.push(taken::<F>(before, &key, &desired.name));
            }
        }
        touched
    }

    /// Makes `FRONTENDS` agree with the claims on these keys.
    pub(super) fn settle_claims(
        &mut self,
        keys: BTreeSet<FrontendKey<F::Addr>>,
        plan: &mut Plan<F>,
    ) {
        let mut addresses = BTreeSet::new();
        for key in keys {
            addresses.insert(key.addr);
            let wanted = self.claims.get(&key).and_then(|claim| {
                let (owner, Wanted { flags, kind }) = claim.owner()?;
                let port = self.ports.get(owner)?;
                Some(Frontend {
                    service: port.row,
                    flags: *flags,
                    kind: *kind,
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
    /// agree with the ports. NodePorts have no address to answer for.
    pub(super) fn settle_address(&mut self, addr: F::Addr, plan: &mut Plan<F>) {
        let key = FrontendKey::address(addr);
        let kind = self
            .frontends
            .range(key..)
            .take_while(|(other, _)| other.addr == addr && !addr.is_zero())
            .filter(|(other, _)| !is_address(other))
            .map(|(_, frontend)| frontend.kind)
            .min_by_key(|kind| precedence(*kind));
        let wanted = kind.map(|kind| Frontend {
            service: Frontend::NO_SERVICE,
            flags: 0,
            kind,
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
            Some(frontend) => {
                if current.is_none() && self.frontends.len() >= self.capacity.frontends as usize {
                    plan.problems.extend(self.no_room_for(&key));
                    return;
                }
                self.set_frontend_bit(&key, plan);
                if current != Some(frontend) {
                    self.frontends.insert(key, frontend);
                    plan.writes.push(Write::Frontend { key, frontend });
                }
            }
            None if current.is_some() => {
                self.frontends.remove(&key);
                plan.writes.push(Write::DeleteFrontend { key });
            }
            None => {}
        }
    }

    /// The problem of who wants a frontend, or the first port of an address,
    /// that the table cannot hold.
    fn no_room_for(&self, key: &FrontendKey<F::Addr>) -> Option<Problem> {
        let (wanted, claim) = self.claims.range(key..).next()?;
        let (owner, _) = claim.owner().filter(|_| wanted.addr == key.addr)?;
        Some(Problem::TableFull {
            port: owner.clone(),
            table: Table::Frontends,
            capacity: self.capacity.frontends,
        })
    }

    /// Removes the frontends that no Service port claims.
    pub(super) fn remove_stray_frontends(&mut self, plan: &mut Plan<F>) {
        let (addresses, keys): (Vec<_>, Vec<_>) =
            self.frontends.keys().copied().partition(is_address);
        let orphans = keys.into_iter();
        let orphans = orphans.filter(|key| !self.claims.contains_key(key));
        self.settle_claims(orphans.collect(), plan);
        for key in addresses {
            self.settle_address(key.addr, plan);
        }
    }

    pub(super) fn report_taken(&self, name: &ServicePortName, plan: &mut Plan<F>) {
        let Some(port) = self.ports.get(name) else {
            return;
        };
        for key in &port.frontends {
            if let Some(claim) = self.claims.get(key)
                && !claim.is_owner(name)
                && let Some((owner, _)) = claim.owner()
            {
                plan.problems.push(taken::<F>(name.clone(), key, owner));
            }
        }
    }
}

/// A port that wants a frontend that another has.
fn taken<F: Family>(
    port: ServicePortName,
    key: &FrontendKey<F::Addr>,
    owner: &ServicePortName,
) -> Problem {
    let frontend = if key.addr.is_zero() {
        format!("NodePort {}", key.port.get())
    } else {
        SocketAddr::new(F::ip(key.addr).into(), key.port.get()).to_string()
    };
    Problem::FrontendTaken {
        port,
        frontend,
        owner: owner.clone(),
    }
}

/// Returns the rank of a kind. The smallest one has the most right to an address, and
/// names the kind of an address whose ports are of several.
fn precedence(kind: u8) -> u8 {
    match kind {
        Frontend::CLUSTER_IP => 0,
        Frontend::LOAD_BALANCER => 1,
        _ => 2,
    }
}
