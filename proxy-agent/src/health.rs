//! The health of the proxy, and health check ports: where load balancers ask whether this
//! node takes clients (S105–S109), and whether it has endpoints of a Service with
//! `externalTrafficPolicy: Local` (S12, S111–S113).
//!
//! The reconciler says after each sync what the answers are, and others what keeps
//! Services from working; [`serve`] and [`proxy`] give the answers.

pub mod answer;
pub mod proxy;
pub mod serve;
pub mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use proxy_common::family::Family;
use tokio::{sync::watch, time::Instant};

use self::state::{Condition, NodeState, Report, State, Subject};
use crate::{
    index::Index,
    model::{IpFamily, ObjectKey},
};

/// The health checks of all Services, by Service and family.
pub type Checks = BTreeMap<(ObjectKey, IpFamily), Check>;

/// One family's side of a Service's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub port: u16,
    /// Addresses of ready endpoints on this node (S112).
    pub endpoints: usize,
}

/// The state that health checks answer with. A handle: clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    checks: watch::Sender<Checks>,
    state: Arc<Mutex<State>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            checks: watch::Sender::new(Checks::new()),
            state: Arc::default(),
        }
    }
}

impl Health {
    /// The checks, whenever they change.
    pub fn checks(&self) -> watch::Receiver<Checks> {
        self.checks.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop that programs these families starts.
    pub fn start(&self, families: impl IntoIterator<Item = IpFamily>) {
        self.state().start(families.into_iter(), Instant::now());
    }

    /// What an earlier agent left serves until the first sync.
    pub fn adopted(&self) {
        self.state().adopt();
    }

    /// The programs are on the devices.
    pub fn attached(&self) {
        self.state().attach();
    }

    /// The loop is alive.
    pub fn turned(&self) {
        self.state().turn(Instant::now());
    }

    /// Load balancers shall send nothing here without a Node object of that name.
    pub fn need_node(&self, name: &str) {
        self.state().need_node(name);
    }

    /// This node's object is in another state.
    pub fn set_node(&self, node: NodeState) {
        self.state().set_node(node);
    }

    /// Sets what is wrong with a subject, or that nothing is.
    pub fn tell(&self, subject: Subject, condition: Option<Condition>) {
        self.state().tell(subject, condition);
    }

    /// Changes wait to be programmed. The first one counts until all are.
    pub fn queued<F: Family>(&self, now: Instant) {
        self.state().queue(IpFamily::by_type::<F>(), now);
    }

    /// A sync put these Services in force, all there are if it was complete.
    pub fn synced<F: Family>(&self, index: &Index, services: &BTreeSet<ObjectKey>, complete: bool) {
        let family = IpFamily::by_type::<F>();
        self.state().sync(family, Instant::now());
        self.checks.send_if_modified(|checks| {
            let mut changed = false;
            if complete {
                let before = checks.len();
                checks.retain(|(service, of), _| *of != family || services.contains(service));
                changed = checks.len() != before;
            }
            for service in services {
                let check = check::<F>(index, service);
                if check.is_none() && checks.is_empty() {
                    // As most Services of most clusters.
                    continue;
                }
                let id = (service.clone(), family);
                changed |= checks.get(&id) != check.as_ref();
                match check {
                    Some(check) => checks.insert(id, check),
                    None => checks.remove(&id),
                };
            }
            changed
        });
    }

    /// Returns the number of endpoints of a Service in one family; 0 if it has no check.
    pub fn endpoints(&self, id: &(ObjectKey, IpFamily)) -> usize {
        let checks = self.checks.borrow();
        checks.get(id).map_or(0, |check| check.endpoints)
    }

    /// The state of the proxy, at a time by the clock.
    pub fn report(&self, wall: SystemTime) -> Report {
        self.state().report(Instant::now(), wall)
    }

    /// Returns whether the proxy serves, whatever the Node says.
    pub fn is_healthy(&self) -> bool {
        self.report(SystemTime::now()).is_healthy()
    }

    /// The reasons why Services do not work here; none if they do.
    pub fn is_unready(&self) -> Vec<String> {
        self.state().is_unready()
    }

    /// The time since the loop last turned, if that is too long.
    pub fn dead_for(&self) -> Option<Duration> {
        self.state().dead_for(Instant::now())
    }
}

/// The check of a Service in one family, if it has one. Endpoints that are only
/// terminating do not count: the load balancer looks for another node while
/// they still serve.
fn check<F: Family>(index: &Index, key: &ObjectKey) -> Option<Check> {
    let service = index.service(key)?;
    let port = service.health_check_port?;
    service.cluster_ips.get::<F>()?;
    let family = IpFamily::by_type::<F>();
    let node = index.node_context().name.as_str();
    let endpoints: BTreeSet<_> = index
        .slices(key)
        .filter(|slice| slice.family == family && !slice.ports.is_empty())
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.ready && endpoint.placement.node.as_deref() == Some(node))
        .map(|endpoint| endpoint.ip)
        .collect();
    Some(Check {
        port,
        endpoints: endpoints.len(),
    })
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        family::{V4, V6},
        net::Protocol,
    };
    use rstest::rstest;

    use super::*;
    use crate::model::{
        Endpoint, EndpointSlice, Object as _, Placement, Service, endpoint_slice::EndpointPort,
    };

    const NODE: &str = "node-0";

    fn key() -> ObjectKey {
        ObjectKey::new("shop", "web")
    }

    fn service(families: &str) -> Service {
        let ip = |family| match family {
            "IPv4" => "10.96.0.10",
            _ => "fd00:10:96::10",
        };
        let families: Vec<_> = families.split(' ').collect();
        let ips: Vec<_> = families.iter().copied().map(ip).collect();
        let api = serde_json::json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 32000,
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ipFamilies": families,
                "ports": [{"port": 80, "nodePort": 30080}, {"name": "b", "port": 81}],
            },
        });
        let api = serde_json::from_value(api).expect("a Service");
        Service::from_api(api)
            .state
            .usable()
            .expect("a proxied Service")
    }

    /// A slice of endpoints: `r` ready, `t` terminating, `u` unready, `n` on
    /// another node.
    fn slice(name: &str, ports: &[u16], ips: &[(&str, char)]) -> EndpointSlice {
        let endpoints = ips.iter().map(|(ip, state)| Endpoint {
            ip: ip.parse().expect("an address"),
            ready: matches!(state, 'r' | 'n'),
            serving: *state != 'u',
            terminating: *state == 't',
            placement: Placement {
                node: Some(if *state == 'n' { "node-1" } else { NODE }.into()),
                ..Placement::default()
            }
            .shared(),
        });
        let endpoints: Vec<_> = endpoints.collect();
        let port = |port: &u16| EndpointPort {
            name: port.to_string().into(),
            protocol: Protocol::TCP,
            port: *port,
        };
        EndpointSlice {
            key: ObjectKey::new("shop", name),
            service: key(),
            family: IpFamily::of(endpoints[0].ip),
            ports: ports.iter().map(port).collect(),
            endpoints,
        }
    }

    fn counts(services: Vec<Service>, slices: Vec<EndpointSlice>) -> [Option<usize>; 2] {
        let mut index = Index::new(NODE);
        index.replace(services);
        index.replace(slices);
        [check::<V4>(&index, &key()), check::<V6>(&index, &key())]
            .map(|check| check.map(|check| check.endpoints))
    }

    /// S112, and S113: each family for itself.
    #[rstest]
    #[case::none("IPv4 IPv6", vec![], [Some(0), Some(0)])]
    #[case::one_family("IPv6", vec![], [None, Some(0)])]
    #[case::ready_and_local(
        "IPv4 IPv6",
        vec![
            slice("a", &[80], &[("10.0.0.1", 'r'), ("10.0.0.2", 'u'), ("10.0.0.3", 'n')]),
            slice("b", &[80], &[("fd00::1", 'r'), ("fd00::2", 'r'), ("fd00::3", 't')]),
        ],
        [Some(1), Some(2)],
    )]
    #[case::terminating_only(
        "IPv4 IPv6",
        vec![slice("a", &[80], &[("10.0.0.1", 't')]), slice("b", &[80], &[("fd00::1", 't')])],
        [Some(0), Some(0)],
    )]
    #[case::each_address_once(
        "IPv4 IPv6",
        vec![
            slice("a", &[80, 81], &[("10.0.0.1", 'r')]),
            slice("b", &[82], &[("10.0.0.1", 'r'), ("10.0.0.2", 'r')]),
            slice("c", &[80, 81], &[("fd00::1", 'r')]),
            slice("d", &[82], &[("fd00::1", 'r')]),
        ],
        [Some(2), Some(1)],
    )]
    #[case::without_ports(
        "IPv4 IPv6",
        vec![slice("a", &[], &[("10.0.0.1", 'r')]), slice("b", &[], &[("fd00::1", 'r')])],
        [Some(0), Some(0)],
    )]
    fn counts_ready_addresses_of_this_node(
        #[case] families: &str,
        #[case] slices: Vec<EndpointSlice>,
        #[case] expected: [Option<usize>; 2],
    ) {
        assert_eq!(counts(vec![service(families)], slices), expected);
    }

    fn names(checks: &Checks) -> Vec<(&str, IpFamily)> {
        let ids = checks.keys();
        ids.map(|(key, family)| (key.name(), *family)).collect()
    }

    /// A sync of one family leaves the other's checks alone, and what it does
    /// not cover.
    #[test]
    fn checks_follow_the_syncs_of_their_family() {
        let mut index = Index::new(NODE);
        index.apply(service("IPv4 IPv6"));
        let health = Health::default();
        let checks = health.checks();
        let all = BTreeSet::from([key()]);
        health.synced::<V4>(&index, &all, true);
        assert_eq!(names(&checks.borrow()), [("web", IpFamily::V4)]);
        health.synced::<V6>(&index, &all, false);
        let both = [("web", IpFamily::V4), ("web", IpFamily::V6)];
        assert_eq!(names(&checks.borrow()), both);

        index.delete::<Service>(&key());
        health.synced::<V4>(&index, &BTreeSet::new(), false);
        assert_eq!(names(&checks.borrow()), both);
        health.synced::<V4>(&index, &BTreeSet::new(), true);
        assert_eq!(names(&checks.borrow()), [("web", IpFamily::V6)]);
        health.synced::<V6>(&index, &all, false);
        assert!(checks.borrow().is_empty());
    }
}
