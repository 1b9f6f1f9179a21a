//! From what each Service port should look like to the writes that make it so.
//!
//! Pure: the planner keeps a mirror of one family's tables and returns the
//! writes that bring them to the desired state, in an order in which every
//! step leaves working tables behind:
//!
//! 1. new backends and slots, where no program looks yet;
//! 2. one store per set of backends, which puts them in force;
//! 3. front ends, new ones before the end of old ones;
//! 4. what is no longer reached is marked dead and kept unused for a while.
//!
//! If a write fails, the mirror is ahead of the tables. The caller then reads
//! them back ([`Planner::adopt`]) and plans everything again; the same happens
//! when an agent starts on tables that another one left.

pub mod adopt;
pub mod alloc;
pub mod memory;
pub mod write;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::BePort,
    prefilter,
    service::{Run, Service},
};

use crate::{
    model::{ObjectKey, ServicePortName},
    plan::{
        alloc::Allocator,
        write::{Capacity, Set, Write},
    },
    select::{DesiredPort, EndpointUse, WhenEmpty},
};

/// Something about a Service port that the tables cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The port keeps what it had; other ports are not affected.
    #[error("table {table} is full ({capacity} entries): {port} stays as it was")]
    TableFull {
        port: ServicePortName,
        table: &'static str,
        capacity: u32,
    },
    /// Two Services claim one address and port; the first one keeps it.
    #[error("{frontend} of {port} already belongs to {owner}, which keeps it")]
    FrontendTaken {
        port: ServicePortName,
        frontend: String,
        owner: ServicePortName,
    },
}

impl Problem {
    /// The Service port that the problem is about.
    pub fn port(&self) -> &ServicePortName {
        match self {
            Self::TableFull { port, .. } | Self::FrontendTaken { port, .. } => port,
        }
    }

    /// Label of the problem in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TableFull { .. } => "table_full",
            Self::FrontendTaken { .. } => "frontend_taken",
        }
    }
}

/// A table has no room for what was asked.
#[derive(Clone, Copy, Debug)]
struct Full {
    table: &'static str,
    capacity: u32,
}

/// Rows that were taken for endpoints, with what to write into them.
type Fresh<F> = BTreeMap<(<F as Family>::Ip, u16), (Row, Backend<<F as Family>::Addr>)>;

/// Writes in the order to do them, and what could not be planned.
#[derive(Clone, Debug)]
pub struct Plan<F: Family> {
    pub writes: Vec<Write<F>>,
    pub problems: Vec<Problem>,
}

impl<F: Family> Default for Plan<F> {
    fn default() -> Self {
        Self {
            writes: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// One family's tables as they will be when all planned writes are done.
#[derive(Clone, Debug)]
pub struct Planner<F: Family> {
    capacity: Capacity,
    rows: Allocator,
    slots: Allocator,
    backends: Allocator,
    /// Last generation of each row of `BACKENDS`.
    generations: Vec<u32>,
    ports: BTreeMap<ServicePortName, Port<F>>,
    services: BTreeMap<ObjectKey, BTreeSet<ServicePortName>>,
    claims: BTreeMap<FrontendKey<F::Addr>, Claim>,
    frontends: BTreeMap<FrontendKey<F::Addr>, Frontend>,
    filters: [Vec<u64>; 2],
}

/// A Service port in the tables.
#[derive(Clone, Debug)]
struct Port<F: Family> {
    row: u32,
    cluster: Placed,
    local: Placed,
    backends: BTreeMap<(F::Ip, u16), Row>,
    frontends: BTreeSet<FrontendKey<F::Addr>>,
}

/// Where a set of backends stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    run: Run,
    /// What the slots of `run` hold.
    backends: Vec<u32>,
}

/// What a change of a port leaves for the end of the plan.
struct Left<F: Family> {
    /// Backends that the port no longer has, still marked alive.
    backends: Vec<Row>,
    /// Stores to sets that no front end uses any more. A front end that
    /// switches from one set to the other finds the new one ready and the old
    /// one untouched.
    unused_sets: Vec<Write<F>>,
}

/// A row of `BACKENDS`.
#[derive(Clone, Copy, Debug)]
struct Row {
    row: u32,
    flags: u8,
}

/// Who wants a front end.
#[derive(Clone, Debug)]
struct Claim {
    owner: ServicePortName,
    /// All that want it, with the flags they want, the owner included.
    wanted: BTreeMap<ServicePortName, u8>,
}

impl<F: Family> Planner<F> {
    /// Plans for empty tables.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            rows: Allocator::new(capacity.services),
            slots: Allocator::new(capacity.slots),
            backends: Allocator::new(capacity.backends),
            generations: Vec::new(),
            ports: BTreeMap::new(),
            services: BTreeMap::new(),
            claims: BTreeMap::new(),
            frontends: BTreeMap::new(),
            filters: [vec![0; prefilter::WORDS], vec![0; prefilter::WORDS]],
        }
    }

    /// Services that have anything in the tables.
    pub fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// Plans the change of one Service to `desired`, all of its ports.
    pub fn update(
        &mut self,
        service: &ObjectKey,
        desired: &[DesiredPort<F>],
        now: Instant,
    ) -> Plan<F> {
        let mut plan = Plan::default();
        self.rows.settle(now);
        self.slots.settle(now);
        self.backends.settle(now);

        let mut touched = BTreeSet::new();
        let mut leaving = Vec::new();
        let mut unused_sets = Vec::new();
        for port in desired {
            match self.place(port, &mut plan, now) {
                Ok(left) => {
                    leaving.extend(left.backends);
                    unused_sets.extend(left.unused_sets);
                }
                Err(Full { table, capacity }) => plan.problems.push(Problem::TableFull {
                    port: port.name.clone(),
                    table,
                    capacity,
                }),
            }
        }
        let gone = self.gone(service, desired);
        for name in &gone {
            touched.extend(self.release(name));
        }
        for port in desired {
            touched.extend(self.claim(port));
        }
        self.settle_claims(touched, &mut plan);
        plan.writes.append(&mut unused_sets);
        for row in leaving {
            self.bury(row, &mut plan, now);
        }
        for name in gone {
            self.remove(&name, &mut plan, now);
        }
        for port in desired {
            self.report_taken(&port.name, &mut plan);
        }
        plan
    }

    /// Plans the removal of front ends that no Service port claims. Only
    /// adopted tables have any.
    pub fn remove_strays(&mut self) -> Plan<F> {
        let mut plan = Plan::default();
        let strays: BTreeSet<_> = self
            .frontends
            .keys()
            .filter(|key| key.port != BePort::ZERO && !self.claims.contains_key(key))
            .copied()
            .collect();
        self.settle_claims(strays, &mut plan);
        let addresses: Vec<_> = self
            .frontends
            .keys()
            .filter(|key| key.port == BePort::ZERO)
            .map(|key| key.addr)
            .collect();
        for addr in addresses {
            self.settle_address(addr, &mut plan);
        }
        plan
    }

    /// Puts row, backends and sets of a port in place.
    fn place(
        &mut self,
        desired: &DesiredPort<F>,
        plan: &mut Plan<F>,
        now: Instant,
    ) -> Result<Left<F>, Full> {
        let known = self.ports.contains_key(&desired.name);
        let row = match self.ports.get(&desired.name) {
            Some(port) => port.row,
            None => self.take_row()?,
        };
        let fresh = match self.take_backends(desired, row) {
            Ok(fresh) => fresh,
            Err(problem) => {
                if !known {
                    self.rows.put_back(row, 1);
                }
                return Err(problem);
            }
        };
        let row_of = |endpoint: &(F::Ip, u16)| {
            fresh.get(endpoint).map(|(row, _)| row.row).or_else(|| {
                let port = self.ports.get(&desired.name)?;
                Some(port.backends.get(endpoint)?.row)
            })
        };
        let members = |member: fn(&EndpointUse) -> bool| -> Vec<u32> {
            desired
                .endpoints
                .iter()
                .filter(|(_, used)| member(used))
                .filter_map(|(endpoint, _)| row_of(endpoint))
                .collect()
        };
        let wanted = [
            (
                Set::Cluster,
                members(|used| used.cluster),
                desired.cluster_empty,
            ),
            (Set::Local, members(|used| used.local), desired.local_empty),
        ];
        let mut placed = Vec::new();
        for (set, backends, empty) in wanted {
            match self.place_set(&desired.name, set, backends, empty) {
                Ok(new) => placed.push((set, new)),
                Err(problem) => {
                    for (_, new) in placed {
                        if let Some(Placed { run, .. }) = new {
                            self.slots.put_back(run.first, run.count);
                        }
                    }
                    for (row, _) in fresh.values() {
                        self.backends.put_back(row.row, 1);
                    }
                    if !known {
                        self.rows.put_back(row, 1);
                    }
                    return Err(problem);
                }
            }
        }
        Ok(self.commit(desired, row, fresh, placed, plan, now))
    }

    /// Writes what [`Planner::place`] found room for.
    fn commit(
        &mut self,
        desired: &DesiredPort<F>,
        row: u32,
        fresh: Fresh<F>,
        placed: Vec<(Set, Option<Placed>)>,
        plan: &mut Plan<F>,
        now: Instant,
    ) -> Left<F> {
        let mut left = Left {
            backends: Vec::new(),
            unused_sets: Vec::new(),
        };
        let protocol = desired.name.protocol;
        for (row, backend) in fresh.values() {
            let bit = prefilter::backend_bit(&backend.addr, backend.port, protocol);
            self.set_filter(prefilter::BACKENDS, bit, plan);
            self.generations[row.row as usize] = backend.generation;
            plan.writes.push(Write::Backend {
                row: row.row,
                backend: *backend,
            });
        }
        for (_, new) in &placed {
            if let Some(Placed { run, backends }) = new
                && run.count > 0
            {
                plan.writes.push(Write::Slots {
                    first: run.first,
                    backends: backends.clone(),
                });
            }
        }
        let known = self.ports.contains_key(&desired.name);
        let port = self
            .ports
            .entry(desired.name.clone())
            .or_insert_with(|| Port {
                row,
                cluster: Placed::nowhere(),
                local: Placed::nowhere(),
                backends: BTreeMap::new(),
                frontends: BTreeSet::new(),
            });
        for (set, new) in placed {
            let Some(new) = new else { continue };
            let current = port.set_mut(set);
            self.slots.retire(current.run.first, current.run.count, now);
            if known {
                let run = new.run;
                let store = Write::Run { row, set, run };
                if is_used(desired, set) {
                    plan.writes.push(store);
                } else {
                    left.unused_sets.push(store);
                }
            }
            *current = new;
        }
        if !known {
            plan.writes.push(Write::Service {
                row,
                service: Service {
                    cluster: port.cluster.run,
                    local: port.local.run,
                },
            });
            plan.writes.push(Write::Name {
                row,
                name: desired.name.clone(),
            });
            self.services
                .entry(desired.name.service.clone())
                .or_default()
                .insert(desired.name.clone());
        }
        for (endpoint, used) in &desired.endpoints {
            if let Some(row) = port.backends.get_mut(endpoint)
                && row.flags != flags(*used)
            {
                row.flags = flags(*used);
                plan.writes.push(Write::BackendFlags {
                    row: row.row,
                    flags: row.flags,
                });
            }
        }
        port.backends.extend(
            fresh
                .into_iter()
                .map(|(endpoint, (row, _))| (endpoint, row)),
        );
        left.backends = port
            .backends
            .extract_if(.., |endpoint, _| !desired.endpoints.contains_key(endpoint))
            .map(|(_, row)| row)
            .collect();
        left
    }

    fn take_row(&mut self) -> Result<u32, Full> {
        self.rows.take(1).ok_or(Full {
            table: "SERVICES",
            capacity: self.capacity.services,
        })
    }

    /// Rows for the endpoints that have none yet; all of them or nothing.
    fn take_backends(&mut self, desired: &DesiredPort<F>, service: u32) -> Result<Fresh<F>, Full> {
        let mut fresh = BTreeMap::new();
        let held = self.ports.get(&desired.name);
        for (&endpoint, used) in &desired.endpoints {
            if held.is_some_and(|port| port.backends.contains_key(&endpoint)) {
                continue;
            }
            let Some(row) = self.backends.take(1) else {
                for (row, _) in fresh.values() {
                    let row: &Row = row;
                    self.backends.put_back(row.row, 1);
                }
                return Err(Full {
                    table: "BACKENDS",
                    capacity: self.capacity.backends,
                });
            };
            if self.generations.len() <= row as usize {
                self.generations.resize(row as usize + 1, 0);
            }
            let (ip, port) = endpoint;
            let backend = Backend {
                addr: F::addr(ip),
                service,
                generation: self.generations[row as usize].wrapping_add(1),
                port: BePort::new(port),
                flags: flags(*used),
                zero: 0,
            };
            let flags = backend.flags;
            fresh.insert(endpoint, (Row { row, flags }, backend));
        }
        Ok(fresh)
    }

    /// Finds room for a set, unless it stands as it should.
    fn place_set(
        &mut self,
        name: &ServicePortName,
        set: Set,
        backends: Vec<u32>,
        empty: WhenEmpty,
    ) -> Result<Option<Placed>, Full> {
        let current = self.ports.get(name).map(|port| port.set(set));
        let run = if backends.is_empty() {
            match empty {
                WhenEmpty::Reject => Run::reject(),
                WhenEmpty::Drop => Run::drop(),
            }
        } else if let Some(current) = current
            && current.backends == backends
        {
            current.run
        } else {
            let full = Full {
                table: "SLOTS",
                capacity: self.capacity.slots,
            };
            let count = u32::try_from(backends.len()).map_err(|_| full)?;
            let Some(first) = self.slots.take(count) else {
                return Err(full);
            };
            Run { first, count }
        };
        let new = Placed { run, backends };
        Ok((current != Some(&new)).then_some(new))
    }

    /// Ports of the Service that are not desired any more.
    fn gone(&self, service: &ObjectKey, desired: &[DesiredPort<F>]) -> Vec<ServicePortName> {
        let Some(names) = self.services.get(service) else {
            return Vec::new();
        };
        names
            .iter()
            .filter(|name| desired.iter().all(|port| port.name != **name))
            .cloned()
            .collect()
    }

    /// Withdraws all claims of a port; returns the front ends they were for.
    fn release(&mut self, name: &ServicePortName) -> BTreeSet<FrontendKey<F::Addr>> {
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
    fn claim(&mut self, desired: &DesiredPort<F>) -> BTreeSet<FrontendKey<F::Addr>> {
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
    fn settle_claims(&mut self, keys: BTreeSet<FrontendKey<F::Addr>>, plan: &mut Plan<F>) {
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
    fn settle_address(&mut self, addr: F::Addr, plan: &mut Plan<F>) {
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

    /// Marks a backend dead and lets its row rest.
    fn bury(&mut self, row: Row, plan: &mut Plan<F>, now: Instant) {
        plan.writes.push(Write::BackendFlags {
            row: row.row,
            flags: 0,
        });
        self.backends.retire(row.row, 1, now);
    }

    /// Removes a port that has no front end any more.
    fn remove(&mut self, name: &ServicePortName, plan: &mut Plan<F>, now: Instant) {
        let Some(port) = self.ports.remove(name) else {
            return;
        };
        if let Some(names) = self.services.get_mut(&name.service) {
            names.remove(name);
            if names.is_empty() {
                self.services.remove(&name.service);
            }
        }
        for row in port.backends.into_values() {
            self.bury(row, plan, now);
        }
        for placed in [port.cluster, port.local] {
            self.slots.retire(placed.run.first, placed.run.count, now);
        }
        plan.writes.push(Write::DeleteName { row: port.row });
        self.rows.retire(port.row, 1, now);
    }

    fn report_taken(&self, name: &ServicePortName, plan: &mut Plan<F>) {
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

    fn set_filter(&mut self, filter: u32, bit: u32, plan: &mut Plan<F>) {
        let word = &mut self.filters[filter as usize][bit as usize / 64];
        let value = *word | 1 << (bit % 64);
        if *word != value {
            *word = value;
            plan.writes.push(Write::Filter {
                filter,
                word: bit / 64,
                value,
            });
        }
    }
}

impl<F: Family> Port<F> {
    fn set(&self, set: Set) -> &Placed {
        match set {
            Set::Cluster => &self.cluster,
            Set::Local => &self.local,
        }
    }

    fn set_mut(&mut self, set: Set) -> &mut Placed {
        match set {
            Set::Cluster => &mut self.cluster,
            Set::Local => &mut self.local,
        }
    }
}

impl Placed {
    /// A set that stands nowhere: what a new row of `SERVICES` holds.
    fn nowhere() -> Self {
        Self {
            run: Run::reject(),
            backends: Vec::new(),
        }
    }
}

/// Whether any front end of the port uses the set.
fn is_used<F: Family>(desired: &DesiredPort<F>, set: Set) -> bool {
    desired
        .frontends
        .iter()
        .any(|frontend| frontend.local_set == (set == Set::Local))
}

/// Flags byte of a backend that is used like this.
fn flags(used: EndpointUse) -> u8 {
    // The constants do not depend on the address type.
    type AnyBackend = Backend<proxy_common::net::AddrV4>;
    if used.serving {
        AnyBackend::USED | AnyBackend::SERVING
    } else {
        AnyBackend::USED
    }
}
