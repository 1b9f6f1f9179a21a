//! From one agent's last state to another's start, and lists that lost most of it. Time
//! is tokio's.

use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc};

use proxy_common::family::{Family, V4, V6};
use rstest::rstest;
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, sleep},
};

use super::*;
use crate::{
    last_state::snapshot::tests::{service, slice},
    metrics::Metrics,
    model::{IpFamily, Node, Parsed, State},
    reconcile::{Desired, Intervals, SyncOutcome, SyncTarget, held::HOLD},
    source::{self, Batch, Update},
};

/// The number of endpoints of each Service in the tables, and the Services of each sync.
#[derive(Default)]
struct Tables {
    served: BTreeMap<String, usize>,
    syncs: Vec<Vec<String>>,
    /// Services that were taken off.
    withdrawn: Vec<String>,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Tables>>);

impl<F: Family> SyncTarget<F> for Shared {
    fn sync(
        &mut self,
        services: &std::collections::BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome {
        let mut tables = self.0.borrow_mut();
        let names = |key: &ObjectKey| key.name().to_owned();
        if complete {
            let keep: Vec<_> = services.iter().map(names).collect();
            tables.served.retain(|name, _| keep.contains(name));
        }
        tables.syncs.push(services.iter().map(names).collect());
        for key in services {
            let ports = desired(key);
            if ports.is_empty() {
                if tables.served.remove(key.name()).is_some() {
                    tables.withdrawn.push(names(key));
                }
            } else {
                let endpoints = ports.iter().map(|port| port.endpoints.len()).sum();
                tables.served.insert(names(key), endpoints);
            }
        }
        SyncOutcome::default()
    }

    fn audit(
        &mut self,
        _: &std::collections::BTreeSet<ObjectKey>,
        _: &mut Desired<F>,
    ) -> anyhow::Result<usize> {
        Ok(0)
    }
}

/// An agent, as far as it decides what is in the tables.
struct Agent {
    v4: Shared,
    v6: Shared,
    sender: mpsc::Sender<Batch>,
    stale: watch::Receiver<bool>,
    in_force: watch::Receiver<bool>,
    node: watch::Receiver<Option<Node>>,
    done: std::pin::Pin<Box<dyn Future<Output = ()>>>,
}

#[derive(Clone, Copy, Default)]
struct Start<'a> {
    folder: Option<&'a Path>,
    /// The tables hold what an earlier agent left there.
    adopted: bool,
    allow_empty: bool,
}

impl Agent {
    fn start(start: Start) -> Self {
        let (v4, v6) = (Shared::default(), Shared::default());
        let mut reconciler = Reconciler::new("node-0", Intervals::default(), Metrics::default())
            .allowing_empty(start.allow_empty)
            .with_family::<V4>(v4.clone())
            .with_family::<V6>(v6.clone());
        if let Some(folder) = start.folder {
            let store = Store::new(folder, "node-0");
            reconciler = reconciler.with_last_state(store, !start.adopted);
        }
        let (sender, receiver) = source::channel();
        Self {
            v4,
            v6,
            sender,
            stale: reconciler.is_stale(),
            in_force: reconciler.in_force(),
            node: reconciler.node(),
            done: Box::pin(reconciler.run(receiver)),
        }
    }

    async fn run_for(&mut self, time: Duration) {
        tokio::select! {
            biased;
            () = &mut self.done => panic!("ended"),
            () = sleep(time) => {}
        }
    }

    async fn settle(&mut self) {
        self.run_for(Duration::from_millis(1)).await;
    }

    async fn take(&mut self, batch: Batch) {
        self.sender.send(batch).await.expect("it runs");
        self.settle().await;
    }

    /// Services in the tables and the number of their endpoints, the same in both families.
    fn served(&self) -> Vec<(String, usize)> {
        let [v4, v6] = [&self.v4, &self.v6].map(|tables| {
            let served = &tables.0.borrow().served;
            served
                .iter()
                .map(|(name, count)| (name.clone(), *count))
                .collect::<Vec<_>>()
        });
        assert_eq!(v4, v6, "the families differ");
        v4
    }

    fn names(&self) -> Vec<String> {
        self.served().into_iter().map(|(name, _)| name).collect()
    }

    fn withdrawn(&self) -> usize {
        self.v4.0.borrow().withdrawn.len() + self.v6.0.borrow().withdrawn.len()
    }
}

fn parsed<T>(key: ObjectKey, object: T) -> Parsed<T> {
    Parsed {
        key,
        state: State::Usable(object),
        problems: Vec::new(),
        triggered: None,
    }
}

fn services(names: &[&str]) -> Vec<Parsed<Service>> {
    let services = names
        .iter()
        .zip(1..)
        .map(|(name, octet)| service(name, octet));
    services
        .map(|service| parsed(service.key.clone(), service))
        .collect()
}

/// A slice of each family for each Service, with one endpoint on another node.
fn slices(names: &[&str]) -> Vec<Parsed<EndpointSlice>> {
    let families = [(IpFamily::V4, "10.1.1.7"), (IpFamily::V6, "fd00:1:1::7")];
    let slices = names
        .iter()
        .flat_map(|name| families.map(|(family, ip)| slice(name, family, &[(ip, "node-1")])));
    slices
        .map(|slice| parsed(slice.key.clone(), slice))
        .collect()
}

fn lists(names: &[&str]) -> Batch {
    vec![
        Update::Relist(services(names)).into(),
        Update::Relist(slices(names)).into(),
    ]
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The folder of an agent that knew five Services when the node went down.
async fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut agent = Agent::start(Start {
        folder: Some(folder.path()),
        ..Start::default()
    });
    let node = Node {
        leaving: None,
        key: ObjectKey::new("", "node-0"),
        zone: Some("a".to_owned()),
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
    };
    agent
        .take(vec![
            Update::Relist(vec![parsed(node.key.clone(), node)]).into(),
        ])
        .await;
    agent.take(lists(&FIVE)).await;
    let path = folder.path().join("state");
    for _ in 0..1000 {
        if path.exists() {
            return folder;
        }
        // The file is written by a thread, whose time is not tokio's.
        std::thread::sleep(Duration::from_millis(5));
        agent.settle().await;
    }
    panic!("nothing was written");
}

/// S98: nothing is left in the kernel, and nobody says what there is.
#[tokio::test(start_paused = true)]
async fn the_last_state_is_served_after_a_reboot() {
    let folder = folder().await;
    let mut agent = Agent::start(Start {
        folder: Some(folder.path()),
        ..Start::default()
    });
    agent.settle().await;
    assert_eq!(agent.served().len(), 5);
    assert!(agent.served().iter().all(|(_, endpoints)| *endpoints == 1));
    assert!(*agent.stale.borrow() && !*agent.in_force.borrow());
    let zone = agent
        .node
        .borrow()
        .as_ref()
        .and_then(|node| node.zone.clone());
    assert_eq!(zone.as_deref(), Some("a"));

    // One list alone says little.
    let mut now = FIVE.to_vec();
    now[4] = "f";
    agent
        .take(vec![Update::Relist(services(&now)).into()])
        .await;
    assert_eq!(agent.names(), owned(&FIVE), "S85");
    agent.take(vec![Update::Relist(slices(&now)).into()]).await;
    assert_eq!(agent.names(), owned(&["a", "b", "c", "d", "f"]));
    assert!(!*agent.stale.borrow() && *agent.in_force.borrow());
    assert_eq!(agent.withdrawn(), 2, "the one that is gone, in each family");
    assert!(agent.node.borrow().is_some(), "its list has not come yet");
}

/// What the tables hold already is newer than what is on disk.
#[tokio::test(start_paused = true)]
async fn the_last_state_is_not_served_over_an_earlier_agents() {
    let folder = folder().await;
    let mut agent = Agent::start(Start {
        folder: Some(folder.path()),
        adopted: true,
        ..Start::default()
    });
    agent.run_for(HOLD).await;
    assert!(agent.served().is_empty() && !*agent.stale.borrow());
    agent.take(lists(&FIVE)).await;
    assert_eq!(agent.names(), owned(&FIVE));
}

/// The API server has an empty store, or is another cluster's.
#[rstest]
#[case::after_a_reboot(false)]
#[case::after_a_restart(true)]
#[tokio::test(start_paused = true)]
async fn a_first_list_that_lost_most_is_held(#[case] adopted: bool) {
    let folder = folder().await;
    let mut agent = Agent::start(Start {
        folder: Some(folder.path()),
        adopted,
        ..Start::default()
    });
    agent.settle().await;
    agent.take(lists(&["new"])).await;
    assert_eq!(agent.served().len(), 6);
    assert!(agent.served().iter().all(|(_, endpoints)| *endpoints == 1));
    agent.run_for(HOLD).await;
    assert_eq!(agent.names(), owned(&["new"]));
}

/// The order of lists is the API server's.
#[rstest]
#[case::services_first(false)]
#[case::slices_first(true)]
#[tokio::test(start_paused = true)]
async fn a_list_that_lost_most_is_held(#[case] slices_first: bool) {
    let mut agent = Agent::start(Start::default());
    agent.take(lists(&FIVE)).await;
    let mut relist = lists(&["a", "new"]);
    if slices_first {
        relist.reverse();
    }
    for change in relist {
        agent.take(vec![change]).await;
    }
    // What is new takes effect, and what is there keeps its endpoints.
    let all = ["a", "b", "c", "d", "e", "new"];
    assert_eq!(agent.names(), owned(&all));
    assert!(agent.served().iter().all(|(_, endpoints)| *endpoints == 1));
    // What is said of single objects is no mistake.
    agent
        .take(vec![
            Update::<Service>::Delete(ObjectKey::new("shop", "b")).into(),
        ])
        .await;
    assert_eq!(agent.names(), owned(&["a", "c", "d", "e", "new"]));
    agent.run_for(HOLD / 2).await;
    agent.take(lists(&["a", "c", "new"])).await;
    assert_eq!(
        agent.names(),
        owned(&["a", "c", "d", "e", "new"]),
        "c is back"
    );
    agent.run_for(HOLD / 2).await;
    assert_eq!(agent.names(), owned(&["a", "c", "new"]));
}

#[tokio::test(start_paused = true)]
async fn deletions_one_by_one_are_not_held() {
    let mut agent = Agent::start(Start::default());
    agent.take(lists(&FIVE)).await;
    let delete = |name| Update::<Service>::Delete(ObjectKey::new("shop", name)).into();
    agent.take(FIVE.map(delete).into()).await;
    assert!(agent.served().is_empty());
}

/// As a directory of manifests says it whose files are gone.
#[rstest]
#[case::held(false, 5)]
#[case::allowed(true, 0)]
#[tokio::test(start_paused = true)]
async fn manifests_that_are_gone_are_held(#[case] allow_empty: bool, #[case] left: usize) {
    let mut agent = Agent::start(Start {
        allow_empty,
        ..Start::default()
    });
    agent.take(lists(&FIVE)).await;
    let missing = FIVE.map(|name| ObjectKey::new("shop", name));
    agent
        .take(vec![Update::<Service>::Missing(missing.into()).into()])
        .await;
    assert_eq!(agent.served().len(), left);
    agent.run_for(HOLD).await;
    assert!(agent.served().is_empty());
}

/// Services that are scaled to nothing: of few, all slices may go.
#[tokio::test(start_paused = true)]
async fn slices_of_few_services_go_at_once() {
    let mut agent = Agent::start(Start::default());
    agent.take(lists(&FIVE)).await;
    agent
        .take(vec![Update::Relist(slices(&["a", "b"])).into()])
        .await;
    let without = agent
        .served()
        .into_iter()
        .filter(|(_, endpoints)| *endpoints == 0);
    assert_eq!(without.count(), 3);
}

/// A relist that is allowed to lose everything.
#[tokio::test(start_paused = true)]
async fn an_empty_list_may_be_allowed() {
    let mut agent = Agent::start(Start {
        allow_empty: true,
        ..Start::default()
    });
    agent.take(lists(&FIVE)).await;
    agent.take(lists(&[])).await;
    assert!(agent.served().is_empty());
}
