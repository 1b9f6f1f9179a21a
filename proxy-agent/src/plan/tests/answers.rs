//! The right contents of the tables for a generated cluster, found without a planner.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::{Address as _, BePort},
    prefilter,
};

use super::cluster::{Cluster, TestFamily, clients, desired};
use crate::{
    plan::{
        is_address,
        memory::{Memory, Resolved},
        write::RangeKey,
    },
    select::{DesiredFrontend, DesiredPort, EndpointUse, FrontendAddress, FrontendKind, WhenEmpty},
};

/// The treatment of new flows by a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer<F: Family> {
    pub(super) kind: u8,
    pub(super) local_set: bool,
    /// Those its traffic policy binds.
    pub(super) bound: Resolved<F>,
    /// Those of this node.
    pub(super) here: Resolved<F>,
    /// True for each of [`clients`] that may use it.
    pub(super) admitted: Vec<bool>,
    /// Both sets of its port.
    pub(super) sets: [Resolved<F>; 2],
}

impl<F: TestFamily> Answer<F> {
    fn wanted(port: &DesiredPort<F>, frontend: &DesiredFrontend<F>) -> Self {
        let cluster = wanted_set(port, |used| used.cluster, port.cluster_empty);
        let local = wanted_set(port, |used| used.local, port.local_empty);
        let pick = |local_set| if local_set { &local } else { &cluster }.clone();
        let is_itself = |client| match frontend.address {
            FrontendAddress::Ip(ip) => ip == client,
            FrontendAddress::AnyNode => false,
        };
        let admitted = clients::<F>().map(|client| {
            !frontend.restricted
                || (frontend.allow_itself && is_itself(client))
                || port.source_ranges.iter().any(|cidr| cidr.contains(client))
        });
        Self {
            kind: frontend.kind.code(),
            local_set: frontend.local_set,
            bound: pick(frontend.local_set),
            here: pick(frontend.local_set && frontend.kind == FrontendKind::ClusterIp),
            admitted: admitted.collect(),
            sets: [cluster, local],
        }
    }

    /// Returns whether the tables answer like this.
    fn is_given(&self, memory: &Memory<F>, key: &FrontendKey<F::Addr>) -> bool {
        let frontend = memory.tables.frontends.get(key);
        frontend.is_some_and(|frontend| frontend.kind == self.kind)
            && memory.resolve(key) == self.bound
            && memory.resolve_here(key) == self.here
            && clients::<F>()
                .map(|client| memory.admits(key, client))
                .eq(self.admitted.iter().copied())
    }
}

fn wanted_set<F: TestFamily>(
    port: &DesiredPort<F>,
    member: fn(&EndpointUse) -> bool,
    empty: WhenEmpty,
) -> Resolved<F> {
    let members = port.endpoints.iter().filter(|(_, used)| member(used));
    let backends: Vec<_> = members.map(|(endpoint, _)| *endpoint).collect();
    match empty {
        _ if !backends.is_empty() => Resolved::Backends(backends),
        WhenEmpty::Drop => Resolved::Drop,
        WhenEmpty::Reject => Resolved::Reject,
    }
}

pub(super) type Expected<F> = BTreeMap<FrontendKey<<F as Family>::Addr>, Vec<Answer<F>>>;

/// The frontends that some Service of the cluster wants, with every answer
/// that would be right: more than one where Services share an address.
pub(super) fn expected<F: TestFamily>(cluster: &Cluster) -> Expected<F> {
    let mut expected = Expected::<F>::new();
    for port in all_desired::<F>(cluster) {
        for frontend in &port.frontends {
            expected
                .entry(frontend.key(port.name.protocol))
                .or_default()
                .push(Answer::wanted(&port, frontend));
        }
    }
    expected
}

pub(super) fn all_desired<F: TestFamily>(cluster: &Cluster) -> Vec<DesiredPort<F>> {
    let ports = cluster.iter().flat_map(|(&n, shape)| desired(n, shape));
    ports.collect()
}

pub(super) fn assert_serves<F: TestFamily>(memory: &Memory<F>, cluster: &Cluster) {
    let expected = expected::<F>(cluster);
    for (key, right) in &expected {
        assert!(
            right.iter().any(|answer| answer.is_given(memory, key)),
            "{key:?}: {:?}, not one of {right:?}",
            memory.resolve(key)
        );
        let other = FrontendKey::new(key.addr, BePort::new(9), key.protocol);
        let unknown = if key.addr.is_zero() {
            Resolved::NotOurs
        } else {
            Resolved::UnknownPort
        };
        assert_eq!(memory.resolve(&other), unknown);
    }
    for key in memory.tables.frontends.keys() {
        let wanted = if is_address(key) {
            !key.addr.is_zero() && expected.keys().any(|other| other.addr == key.addr)
        } else {
            expected.contains_key(key)
        };
        assert!(wanted, "left behind: {key:?}");
    }
    assert_addresses(memory);
    assert_filters(memory);
    for port in all_desired::<F>(cluster) {
        assert_row(memory, &port);
    }
    assert_ranges(memory, cluster);
}

/// An address is of the most important kind that one of its ports is of.
fn assert_addresses<F: TestFamily>(memory: &Memory<F>) {
    let frontends = &memory.tables.frontends;
    for (key, entry) in frontends.iter().filter(|(key, _)| is_address(key)) {
        let kinds: Vec<_> = frontends
            .iter()
            .filter(|(other, _)| other.addr == key.addr && !is_address(other))
            .map(|(_, frontend)| frontend.kind)
            .collect();
        let kind = [
            Frontend::CLUSTER_IP,
            Frontend::LOAD_BALANCER,
            Frontend::EXTERNAL_IP,
        ]
        .into_iter()
        .find(|kind| kinds.contains(kind));
        assert_eq!((Some(entry.kind), entry.service), (kind, u32::MAX));
    }
}

/// Every address, NodePort and backend has its bit.
fn assert_filters<F: TestFamily>(memory: &Memory<F>) {
    let has = |filter: u32, bit: u32| {
        let words = &memory.tables.filters[filter as usize];
        words.get(bit as usize / 64).unwrap_or(&0) >> (bit % 64) & 1 == 1
    };
    for key in memory.tables.frontends.keys() {
        let (filter, bit) = if key.addr.is_zero() {
            let bit = prefilter::node_port_bit(key.port, key.protocol);
            (prefilter::NODE_PORTS, bit)
        } else {
            (prefilter::FRONTENDS, prefilter::frontend_bit(&key.addr))
        };
        assert!(has(filter, bit));
    }
    for backend in &memory.tables.backends {
        let name = memory.tables.names.get(&backend.service);
        if let Some(name) = name.filter(|_| backend.flags != 0) {
            let bit = prefilter::backend_bit(&backend.addr, backend.port, name.protocol);
            assert!(has(prefilter::BACKENDS, bit));
        }
    }
}

/// Affinity and endpoints of a port are as desired.
fn assert_row<F: TestFamily>(memory: &Memory<F>, port: &DesiredPort<F>) {
    let tables = &memory.tables;
    let rows: Vec<_> = tables.names.iter().filter(|e| *e.1 == port.name).collect();
    let row = match rows[..] {
        [(row, _)] => *row,
        _ => panic!("{} has rows {rows:?}", port.name),
    };
    let session_affinity = tables.services[row as usize].session_affinity;
    assert_eq!(session_affinity.seconds, port.affinity.unwrap_or(0));
    let found: BTreeMap<_, _> = tables
        .backends
        .iter()
        .filter(|backend| backend.service == row && backend.flags != 0)
        .map(|backend| ((F::ip(backend.addr), backend.port.get()), backend.flags))
        .collect();
    let flag = |set: bool, bit: u8| u8::from(set) * bit;
    let wanted: BTreeMap<_, _> = port
        .endpoints
        .iter()
        .map(|(endpoint, used)| {
            let flags = Backend::<F::Addr>::USED
                | flag(used.serving, Backend::<F::Addr>::SERVING)
                | flag(used.cluster, Backend::<F::Addr>::CLUSTER)
                | flag(used.local, Backend::<F::Addr>::LOCAL)
                | flag(used.here, Backend::<F::Addr>::HERE);
            (*endpoint, flags)
        })
        .collect();
    assert_eq!(found, wanted);
}

/// There are the source ranges that are wanted and no others.
fn assert_ranges<F: TestFamily>(memory: &Memory<F>, cluster: &Cluster) {
    let tables = &memory.tables;
    let mut wanted = BTreeSet::new();
    for port in all_desired::<F>(cluster) {
        let row = tables.names.iter().find(|(_, name)| **name == port.name);
        let row = *row.expect("the port has a row").0;
        for cidr in &port.source_ranges {
            wanted.insert(RangeKey::new(row, F::addr(cidr.network()), cidr.length()));
        }
    }
    assert_eq!(tables.source_ranges, wanted);
}
