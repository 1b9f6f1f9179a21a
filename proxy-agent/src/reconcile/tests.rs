//! The loop, fed by hand and writing into fakes. Time is tokio's and stands
//! still except when everything sleeps.

mod failures;
mod latencies;

use std::{cell::RefCell, rc::Rc, sync::Arc};

use prometheus_client::{encoding::text::encode, registry::Registry};
use proxy_common::{
    family::{V4, V6},
    net::Protocol,
    table::Table,
};
use rstest::rstest;

use super::*;
use crate::{
    dataplane::load::{FixedSizes, Sizes},
    model::{
        Endpoint, FamilyIps, Service, ServicePort, ServicePortName, ServiceProblem,
        endpoint_slice::EndpointPort,
    },
};

/// One call of a fake.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    at: Duration,
    /// Names and number of ports of the Services.
    services: Vec<(String, usize)>,
    complete: bool,
}

/// Notes every sync, and fails when told to.
struct Fake {
    start: Instant,
    calls: Rc<RefCell<Vec<Call>>>,
    outcomes: Outcomes,
}

/// The results of syncs, by their number from 0, and of every audit.
#[derive(Clone, Default)]
struct Outcomes {
    failing: BTreeSet<usize>,
    /// Syncs after which the Services are to be retried.
    retried: BTreeSet<usize>,
    /// Syncs that find a table full.
    full: BTreeSet<usize>,
    failing_audit: bool,
}

impl Outcomes {
    fn fail(syncs: impl IntoIterator<Item = usize>) -> Self {
        Self {
            failing: syncs.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl<F: Family> SyncTarget<F> for Fake {
    fn sync(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome {
        let n = self.calls.borrow().len();
        let describe = |key: &ObjectKey| (key.name().to_owned(), desired(key).len());
        self.calls.borrow_mut().push(Call {
            at: self.start.elapsed(),
            services: services.iter().map(describe).collect(),
            complete,
        });
        let fails = self.outcomes.failing.contains(&n);
        SyncOutcome {
            writes: 1,
            problems: if self.outcomes.full.contains(&n) {
                services.iter().map(full).collect()
            } else {
                Vec::new()
            },
            retry: if self.outcomes.retried.contains(&n) {
                services.clone()
            } else {
                BTreeSet::new()
            },
            error: fails.then(|| anyhow::anyhow!("write {n} failed")),
        }
    }

    fn audit(&mut self, _: &BTreeSet<ObjectKey>, _: &mut Desired<F>) -> anyhow::Result<usize> {
        if self.outcomes.failing_audit {
            self.outcomes.failing_audit = false;
            anyhow::bail!("FRONTENDS_V4 is gone");
        }
        Ok(0)
    }
}

fn full(service: &ObjectKey) -> plan::Problem {
    plan::Problem::TableFull {
        port: ServicePortName {
            service: service.clone(),
            port: "".into(),
            protocol: Protocol::TCP,
        },
        table: Table::Services,
        capacity: Sizes::DEFAULT.services,
    }
}

/// A reconciler with a fake for each family, and the sending side.
struct Rig {
    v4: Rc<RefCell<Vec<Call>>>,
    v6: Rc<RefCell<Vec<Call>>>,
    sender: mpsc::Sender<Batch>,
    node: watch::Receiver<Option<Node>>,
    health: Health,
    growth: Rc<Growth>,
    metrics: Metrics,
    registry: Registry,
    done: std::pin::Pin<Box<dyn Future<Output = ()>>>,
}

impl Rig {
    fn new(intervals: Intervals, v4: Outcomes, v6: Outcomes) -> Self {
        let start = Instant::now();
        let (v4_calls, v6_calls) = (Rc::default(), Rc::default());
        let fake = |calls: &Rc<_>, outcomes| Fake {
            start,
            calls: Rc::clone(calls),
            outcomes,
        };
        let (metrics, registry) = Metrics::new();
        let growth = Rc::new(Growth::new(Sizes::DEFAULT, FixedSizes::default(), u64::MAX));
        let health = Health::default();
        let reconciler = Reconciler::new("node-0", intervals, metrics.clone())
            .with_health(&health)
            .with_growth(&growth)
            .with_family::<V4>(fake(&v4_calls, v4))
            .with_family::<V6>(fake(&v6_calls, v6));
        let (sender, receiver) = crate::source::channel();
        Self {
            v4: v4_calls,
            v6: v6_calls,
            sender,
            node: reconciler.node(),
            health,
            growth,
            metrics,
            registry,
            done: Box::pin(reconciler.run(receiver)),
        }
    }

    async fn send(&mut self, batch: Batch) {
        self.sender.send(batch).await.expect("the reconciler runs");
    }

    /// Lets the reconciler run for that long.
    async fn run_for(&mut self, time: Duration) {
        tokio::select! {
            biased;
            ended = &mut self.done => panic!("ended: {ended:?}"),
            () = tokio::time::sleep(time) => {}
        }
    }

    /// Lets the reconciler do what it can do at once.
    async fn settle(&mut self) {
        self.run_for(Duration::from_millis(1)).await;
    }

    /// Returns how many changes' latencies were measured, IPv4 first.
    fn measured(&self) -> [u64; 2] {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("encode");
        ["IPv4", "IPv6"].map(|family| {
            let name = "kubeproxy_network_programming_duration_seconds_count";
            let name = format!("{name}{{ip_family=\"{family}\"}} ");
            let count = text.lines().find_map(|line| line.strip_prefix(&name));
            count.map_or(0, |count| count.parse().expect("a count"))
        })
    }

    /// Changes of Services and of slices that are not in force.
    fn pending(&self) -> [u64; 2] {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("encode");
        ["service", "endpoint"].map(|kind| {
            let name = format!("kubeproxy_sync_proxy_rules_{kind}_changes_pending ");
            let count = text.lines().find_map(|line| line.strip_prefix(&name));
            count.map_or(0, |count| count.parse().expect("a count"))
        })
    }

    /// Services of IPv4 that were logged because they do not fit.
    fn full(&self) -> usize {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("encode");
        let name = "tandem_table_problems_total{ip_family=\"IPv4\",reason=\"table_full\"} ";
        let count = text.lines().find_map(|line| line.strip_prefix(name));
        count.map_or(0, |count| count.parse().expect("a count"))
    }

    /// The syncs since the last time, as (seconds, names, complete).
    fn take(calls: &Rc<RefCell<Vec<Call>>>, seen: &mut usize) -> Vec<(u64, Vec<String>, bool)> {
        let calls = calls.borrow();
        let new = calls[*seen..].iter().map(|call| {
            let names = call.services.iter().map(|(name, _)| name.clone());
            (call.at.as_secs(), names.collect(), call.complete)
        });
        let new = new.collect();
        *seen = calls.len();
        new
    }
}

fn service(name: &str) -> Parsed<Service> {
    let key = ObjectKey::new("default", name);
    Parsed {
        key: key.clone(),
        state: State::Usable(Service {
            key,
            cluster_ips: FamilyIps {
                v4: Some([10, 96, 0, 1].into()),
                v6: Some([0xfd00, 0, 0, 0, 0, 0, 0, 1].into()),
            },
            ports: vec![ServicePort::new("", Protocol::TCP, 80)],
            ..Service::default()
        }),
        problems: Vec::new(),
        triggered: None,
    }
}

fn slice(service: &str, last_octet: u8) -> Parsed<EndpointSlice> {
    let key = ObjectKey::new("default", format!("{service}-1"));
    Parsed {
        key: key.clone(),
        state: State::Usable(EndpointSlice {
            key,
            service: ObjectKey::new("default", service),
            family: IpFamily::V4,
            ports: vec![EndpointPort {
                name: "".into(),
                protocol: Protocol::TCP,
                port: 8080,
            }],
            endpoints: vec![Endpoint {
                ip: [10, 0, 0, last_octet].into(),
                ready: true,
                serving: true,
                terminating: false,
                placement: Arc::default(),
            }],
        }),
        problems: Vec::new(),
        triggered: None,
    }
}

fn lists(services: &[&str]) -> Batch {
    vec![
        Update::Relist(services.iter().map(|name| service(name)).collect()).into(),
        Update::<EndpointSlice>::Relist(Vec::new()).into(),
    ]
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Nothing is programmed until both lists are complete (S85).
#[rstest]
#[case::services_only(vec![Update::Relist(vec![service("web")]).into()])]
#[case::slices_only(vec![Update::Relist(vec![slice("web", 1)]).into()])]
#[case::objects_but_no_lists(
    vec![Update::Apply(service("web")).into(), Update::Apply(slice("web", 1)).into()])]
#[case::nothing(vec![])]
#[tokio::test(start_paused = true)]
async fn nothing_is_programmed_before_both_lists(#[case] batch: Batch) {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    rig.send(batch).await;
    rig.run_for(Duration::from_hours(1)).await;
    assert_eq!((rig.v4.borrow().len(), rig.v6.borrow().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_first_sync_is_complete_and_later_ones_are_not() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    let (mut v4, mut v6) = (0, 0);
    rig.send(lists(&["a", "b"])).await;
    rig.settle().await;
    let first = [(0, names(&["a", "b"]), true)];
    assert_eq!(Rig::take(&rig.v4, &mut v4), first);
    assert_eq!(Rig::take(&rig.v6, &mut v6), first);

    rig.send(vec![Update::Apply(slice("b", 1)).into()]).await;
    rig.settle().await;
    assert_eq!(Rig::take(&rig.v4, &mut v4), [(0, names(&["b"]), false)]);

    rig.send(vec![
        Update::<Service>::Delete(ObjectKey::new("default", "a")).into(),
    ])
    .await;
    rig.settle().await;
    assert_eq!(Rig::take(&rig.v4, &mut v4), [(0, names(&["a"]), false)]);
    assert_eq!(rig.v4.borrow()[2].services, [("a".to_owned(), 0)]);
}

/// S15: an event that says nothing new costs nothing.
#[tokio::test(start_paused = true)]
async fn equal_objects_cause_no_sync() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    rig.send(lists(&["a"])).await;
    rig.settle().await;
    rig.send(lists(&["a"])).await;
    rig.send(vec![Update::Apply(service("a")).into()]).await;
    rig.run_for(Duration::from_hours(1)).await;
    assert_eq!(rig.v4.borrow().len(), 1);
}

/// S86: at once if idle; changes within the gap are one sync at its end.
#[tokio::test(start_paused = true)]
async fn changes_are_batched_within_the_gap() {
    let intervals = Intervals {
        min_sync: Duration::from_secs(10),
        ..Intervals::default()
    };
    let mut rig = Rig::new(intervals, Outcomes::default(), Outcomes::default());
    let mut v4 = 0;
    rig.send(lists(&["a", "b", "c"])).await;
    rig.settle().await;
    assert_eq!(Rig::take(&rig.v4, &mut v4).len(), 1);

    for (name, octet) in [("a", 1), ("b", 1), ("a", 2)] {
        rig.send(vec![Update::Apply(slice(name, octet)).into()])
            .await;
        rig.run_for(Duration::from_secs(1)).await;
    }
    assert_eq!(Rig::take(&rig.v4, &mut v4), []);
    rig.run_for(Duration::from_secs(30)).await;
    assert_eq!(
        Rig::take(&rig.v4, &mut v4),
        [(10, names(&["a", "b"]), false)]
    );

    rig.send(vec![Update::Apply(slice("c", 1)).into()]).await;
    rig.settle().await;
    assert_eq!(Rig::take(&rig.v4, &mut v4), [(33, names(&["c"]), false)]);
}

/// Full tables are no problem where larger ones are about to take their place. Once they
/// have, all Services are synced into them.
#[tokio::test(start_paused = true)]
async fn full_tables_are_made_larger_before_anybody_is_told() {
    let outcomes = Outcomes {
        full: [0, 1].into(),
        ..Outcomes::default()
    };
    let mut rig = Rig::new(Intervals::default(), outcomes, Outcomes::default());
    let mut v4 = 0;
    rig.send(lists(&["a", "b"])).await;
    rig.settle().await;
    let larger = rig.growth.wanted().await;
    assert_eq!(larger.services, 2 * Sizes::DEFAULT.services);
    assert_eq!(rig.full(), 0);

    let first = [(0, names(&["a", "b"]), true)];
    assert_eq!(Rig::take(&rig.v4, &mut v4), first);
    rig.growth.exchanged(larger);
    rig.settle().await;
    assert_eq!(Rig::take(&rig.v4, &mut v4), first);
    // Full again, and too soon.
    assert_eq!(rig.full(), 2);
}

/// Changes that wait for their sync are no damage that an audit repairs.
#[tokio::test(start_paused = true)]
async fn an_audit_finds_nothing_waiting() {
    let intervals = Intervals {
        min_sync: Duration::from_hours(1),
        ..Intervals::default()
    };
    let mut rig = Rig::new(intervals, Outcomes::default(), Outcomes::default());
    let (mut v4, mut v6) = (0, 0);
    rig.send(lists(&["a", "b"])).await;
    rig.settle().await;
    rig.send(vec![Update::Apply(slice("a", 1)).into()]).await;
    rig.run_for(Duration::from_mins(5)).await;
    let expected = [(0, names(&["a", "b"]), true), (60, names(&["a"]), false)];
    assert_eq!(Rig::take(&rig.v4, &mut v4), expected);
    assert_eq!(Rig::take(&rig.v6, &mut v6), expected);
}

#[tokio::test(start_paused = true)]
async fn this_nodes_object_is_handed_on() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    let node = |name: &str| {
        let key = ObjectKey::new("", name);
        let value = Node {
            key: key.clone(),
            zone: Some("zone-a".to_owned()),
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            leaving: None,
        };
        Parsed {
            key,
            state: State::Usable(value),
            problems: Vec::new(),
            triggered: None,
        }
    };
    rig.send(lists(&["a"])).await;
    rig.send(vec![Update::Apply(node("node-1")).into()]).await;
    rig.settle().await;
    assert_eq!(*rig.node.borrow(), None);

    rig.send(vec![Update::Apply(node("node-0")).into()]).await;
    rig.settle().await;
    let handed_on = rig.node.borrow().clone().expect("this node");
    assert_eq!(handed_on.key.name(), "node-0");
    // S90: its zone concerns all Services.
    let last = rig.v4.borrow().last().cloned().expect("a sync");
    assert_eq!((last.services.len(), rig.v4.borrow().len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn stops_when_the_source_is_gone() {
    let rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    drop(rig.sender);
    rig.done.await;
}

/// Changes are pending for as long as one family does not have them.
#[tokio::test(start_paused = true)]
async fn changes_are_pending_until_both_families_have_them() {
    let failing = Outcomes::fail([1]);
    let mut rig = Rig::new(Intervals::default(), Outcomes::default(), failing);
    rig.send(lists(&["a", "b"])).await;
    rig.settle().await;
    assert_eq!(rig.pending(), [0, 0]);
    rig.send(vec![Update::Apply(slice("a", 2)).into()]).await;
    rig.settle().await;
    assert_eq!(rig.pending(), [0, 1], "IPv6 failed");
    rig.run_for(Duration::from_secs(2)).await;
    assert_eq!(rig.pending(), [0, 0]);
}
