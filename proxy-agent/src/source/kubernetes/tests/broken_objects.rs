//! Objects that cannot be read, from an API server to what is to be served.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use proxy_common::family::{Family, V4, V6};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api_server::FakeApi;
use crate::{
    metrics::Metrics,
    model::{Kind, ObjectKey},
    reconcile::{Desired, Intervals, Reconciler, SyncOutcome, SyncTarget},
    source::{self, kubernetes},
};

/// On a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Each Service that is to be served: its ports, and the number of its endpoints.
type Served = Rc<RefCell<BTreeMap<String, (Vec<u16>, usize)>>>;

/// Records what is to be served.
struct Notes(Served);

impl<F: Family> SyncTarget<F> for Notes {
    fn sync(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome {
        let mut served = self.0.borrow_mut();
        if complete {
            served.clear();
        }
        for key in services {
            let ports = desired(key);
            let endpoints = ports.iter().map(|port| port.endpoints.len()).sum();
            let numbers = ports.iter().map(|port| port.frontends[0].port);
            let numbers: Vec<_> = numbers.collect();
            if numbers.is_empty() {
                served.remove(key.name());
            } else {
                served.insert(key.name().to_owned(), (numbers, endpoints));
            }
        }
        SyncOutcome::default()
    }

    fn audit(&mut self, _: &BTreeSet<ObjectKey>, _: &mut Desired<F>) -> anyhow::Result<usize> {
        Ok(0)
    }
}

/// An agent, as far as it decides what is to be served.
struct Agent {
    v4: Served,
    v6: Served,
    metrics: Metrics,
    running: std::pin::Pin<Box<dyn Future<Output = ()>>>,
}

impl Agent {
    fn start(api: &FakeApi) -> Self {
        let (metrics, _) = Metrics::new();
        let (v4, v6) = (Served::default(), Served::default());
        let reconciler = Reconciler::new("node-0", Intervals::default(), metrics.clone())
            .with_family::<V4>(Notes(Rc::clone(&v4)))
            .with_family::<V6>(Notes(Rc::clone(&v6)));
        let (sender, receiver) = source::channel();
        let (server, errors) = (api.server(), metrics.clone());
        let running = Box::pin(async move {
            let source = kubernetes::run(server, "node-0", sender, errors);
            let reconciler = reconciler.run(receiver);
            tokio::join!(source, reconciler);
        });
        Self {
            v4,
            v6,
            metrics,
            running,
        }
    }

    /// Runs until something holds, of both families.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?} {:?}",
                self.v4,
                self.v6
            );
            tokio::select! {
                () = &mut self.running => panic!("ended"),
                () = sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    /// Runs until these Services are served, with one endpoint in each family.
    async fn serves(&mut self, what: &str, services: &[(&str, &[u16])]) {
        let expected: BTreeMap<_, _> = services
            .iter()
            .map(|(name, ports)| ((*name).to_owned(), (ports.to_vec(), ports.len())))
            .collect();
        self.until(what, |agent| {
            *agent.v4.borrow() == expected && *agent.v6.borrow() == expected
        })
        .await;
    }
}

fn service(name: &str, octet: u8, port: u16) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "resourceVersion": "5"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": format!("10.96.0.{octet}"),
            "clusterIPs": [format!("10.96.0.{octet}"), format!("fd00:96::{octet}")],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"port": port}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A slice of each family with one endpoint.
fn slices(service: &str, octet: u8) -> [Value; 2] {
    [
        ("IPv4", format!("10.1.0.{octet}")),
        ("IPv6", format!("fd00:1::{octet}")),
    ]
    .map(|(family, ip)| {
        json!({
            "metadata": {
                "namespace": "default",
                "name": format!("{service}-{}", family.to_lowercase()),
                "resourceVersion": "5",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family,
            "ports": [{"name": "", "port": 8080}],
            "endpoints": [{"addresses": [ip]}],
        })
    })
}

fn list(api: &FakeApi, kind: &str, objects: &[Value]) {
    let objects: Vec<_> = objects.iter().map(Value::to_string).collect();
    let objects: Vec<_> = objects.iter().map(String::as_str).collect();
    api.list(kind, &objects);
}

/// An object with another value somewhere.
fn with(mut object: Value, path: &str, value: Value) -> Value {
    let (parent, name) = path.rsplit_once('/').expect("a path");
    object.pointer_mut(parent).expect("its parent")[name] = value;
    object
}

async fn two_services(host: &str) -> FakeApi {
    let api = FakeApi::start(host).await;
    list(
        &api,
        "services",
        &[service("one", 1, 80), service("two", 2, 81)],
    );
    let slices = [slices("one", 1), slices("two", 2)].concat();
    list(&api, "endpointslices", &slices);
    api
}

/// Clients may write conditions without times, and the API server keeps them so: they are
/// of no use to a proxy, whether the agent is running or starting.
#[rstest]
#[tokio::test]
async fn a_status_without_times_changes_nothing(#[values("127.0.0.1", "[::1]")] host: &str) {
    let condition = json!([{"type": "Ready", "status": "True", "lastTransitionTime": null}]);
    let odd = |port| {
        with(
            service("one", 1, port),
            "/status/conditions",
            condition.clone(),
        )
    };
    let api = two_services(host).await;
    let mut running = Agent::start(&api);
    running
        .serves("both", &[("one", &[80]), ("two", &[81])])
        .await;
    list(&api, "services", &[odd(90), service("two", 2, 81)]);
    running
        .until("a watch", |_| {
            api.send("services", "MODIFIED", &odd(90).to_string())
        })
        .await;
    running
        .serves("the event", &[("one", &[90]), ("two", &[81])])
        .await;

    let mut starting = Agent::start(&api);
    starting
        .serves("the list", &[("one", &[90]), ("two", &[81])])
        .await;
    assert_eq!(
        running
            .metrics
            .object_problem_count(Kind::Service, "unreadable"),
        0
    );
}

/// An object that cannot be read, in an event and in a list.
#[rstest]
#[case::spec("services", Kind::Service, service("one", 1, 90), "/spec", json!("broken"))]
#[case::labels("services", Kind::Service, service("one", 1, 90), "/metadata/labels", json!(7))]
#[case::ports("services", Kind::Service, service("one", 1, 90), "/spec/ports", json!({}))]
#[case::policy("services", Kind::Service, service("one", 1, 90), "/spec/internalTrafficPolicy", json!(1))]
#[case::endpoints("endpointslices", Kind::EndpointSlice, slices("one", 1)[0].clone(), "/endpoints", json!(3))]
#[case::family("endpointslices", Kind::EndpointSlice, slices("one", 1)[1].clone(), "/addressType", json!([]))]
#[tokio::test]
async fn an_unreadable_object_keeps_its_last_good_state(
    #[case] plural: &str,
    #[case] kind: Kind,
    #[case] object: Value,
    #[case] path: &str,
    #[case] value: Value,
) {
    let broken = with(object.clone(), path, value);
    let api = two_services("127.0.0.1").await;
    let mut running = Agent::start(&api);
    let both: &[(&str, &[u16])] = &[("one", &[80]), ("two", &[81])];
    running.serves("both", both).await;
    let unreadable = |agent: &Agent| agent.metrics.object_problem_count(kind, "unreadable");
    running
        .until("a watch", |_| {
            api.send(plural, "MODIFIED", &broken.to_string())
        })
        .await;
    running
        .until("counted", |agent| unreadable(agent) == 1)
        .await;

    // Another object's event and a new list show that those were taken in.
    let more = [
        service("one", 1, 80),
        service("two", 2, 82),
        service("three", 3, 83),
    ];
    let more_slices = [slices("one", 1), slices("two", 2), slices("three", 3)].concat();
    let exchange = |objects: &[Value]| {
        let name = &broken["metadata"]["name"];
        let objects = objects.iter();
        let objects = objects.map(|o| {
            if o["metadata"]["name"] == *name {
                &broken
            } else {
                o
            }
        });
        objects.cloned().collect::<Vec<_>>()
    };
    list(&api, "services", &exchange(&more));
    list(&api, "endpointslices", &exchange(&more_slices));
    for kind in ["services", "endpointslices"] {
        running.until("a watch", |_| api.is_watched(kind)).await;
        api.expire(kind);
    }
    let three: &[(&str, &[u16])] = &[("one", &[80]), ("two", &[82]), ("three", &[83])];
    running.serves("the list", three).await;
    assert_eq!(unreadable(&running), 1, "no news");

    // One that starts never knew it. It serves all others.
    let mut starting = Agent::start(&api);
    starting
        .until("others", |agent| {
            let (v4, v6) = (agent.v4.borrow(), agent.v6.borrow());
            [v4, v6].iter().all(|served| {
                served.get("two") == Some(&(vec![82], 1))
                    && served.get("three") == Some(&(vec![83], 1))
            })
        })
        .await;
    assert_eq!(unreadable(&starting), 1);

    // That it is gone can be read.
    let gone = broken.to_string();
    running
        .until("gone", |agent| {
            // Again and again: it may just be about to watch anew.
            api.send(plural, "DELETED", &gone);
            let served = [agent.v4.borrow(), agent.v6.borrow()];
            served
                .iter()
                .any(|served| served.get("one") != Some(&(vec![80], 1)))
        })
        .await;
}

/// An item of a list that does not say which object it is may be any of those
/// that are missing.
#[tokio::test]
async fn an_object_without_a_name_is_no_proof_that_another_is_gone() {
    let api = two_services("127.0.0.1").await;
    let mut running = Agent::start(&api);
    running
        .serves("both", &[("one", &[80]), ("two", &[81])])
        .await;
    list(&api, "services", &[json!(5), service("two", 2, 82)]);
    running
        .until("a watch", |_| api.send("services", "BOOKMARK", BOOKMARK))
        .await;
    api.expire("services");
    running
        .serves("the list", &[("one", &[80]), ("two", &[82])])
        .await;
    list(&api, "services", &[service("two", 2, 83)]);
    running
        .until("a watch", |_| api.send("services", "BOOKMARK", BOOKMARK))
        .await;
    api.expire("services");
    running.serves("a good list", &[("two", &[83])]).await;
}

/// As API servers send them: with an object of the kind that is empty.
const BOOKMARK: &str = concat!(
    r#"{"kind":"Service","apiVersion":"v1","spec":{},"status":{"loadBalancer":{}},"#,
    r#""metadata":{"resourceVersion":"9","creationTimestamp":null}}"#
);
