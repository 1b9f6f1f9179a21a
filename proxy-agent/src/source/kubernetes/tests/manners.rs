//! What an API server sees of an agent.

use std::{fs, time::Duration};

use rstest::rstest;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::api_server::{Asked, FakeApi, Refusal};
use crate::{
    metrics::Metrics,
    model::Kind,
    source::{
        self, Access, Batch, Change, Update,
        kubernetes::{self, ApiServer},
    },
};

const LIMIT: Duration = Duration::from_secs(30);
const KINDS: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// Watches a server for as long as it is there.
struct Watching {
    changes: mpsc::Receiver<Batch>,
    running: tokio::task::JoinHandle<()>,
}

impl Watching {
    fn start(server: ApiServer) -> Self {
        let (sender, changes) = source::channel();
        let run =
            async move { kubernetes::run(server, "node-0", sender, Metrics::default()).await };
        let running = tokio::task::spawn_local(run);
        Self { changes, running }
    }

    /// Waits for lists of those kinds, and for nothing else.
    async fn lists(&mut self, mut kinds: Vec<Kind>) {
        while !kinds.is_empty() {
            let batch = timeout(LIMIT, self.changes.recv()).await.expect("a change");
            for change in batch.expect("it runs") {
                let kind = match change {
                    Change::Service(Update::Relist(_)) => Kind::Service,
                    Change::EndpointSlice(Update::Relist(_)) => Kind::EndpointSlice,
                    Change::Node(Update::Relist(_)) => Kind::Node,
                    Change::ServiceCidr(Update::Relist(_)) => Kind::ServiceCidr,
                    other => panic!("{other:?}"),
                };
                assert!(kinds.contains(&kind), "{kind} was not expected, or twice");
                kinds.retain(|expected| *expected != kind);
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.running.abort();
    }
}

const ALL: [Kind; 4] = [
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::ServiceCidr,
];

/// Runs a test with tasks of its own thread.
async fn local(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn has(asked: &Asked, parameters: &[&str]) -> bool {
    let query: Vec<_> = asked.query.split('&').collect();
    parameters.iter().all(|parameter| query.contains(parameter))
}

/// The API server streams from its watch cache what is there, and then what changes: one
/// request for each kind.
#[rstest]
#[tokio::test]
async fn lists_are_streams_from_the_watch_cache(#[values("127.0.0.1", "[::1]")] host: &str) {
    local(async {
        let api = FakeApi::start(host).await;
        Watching::start(api.server()).lists(ALL.to_vec()).await;
        for kind in KINDS {
            let asked = api.asked(kind);
            assert_eq!(asked.len(), 1, "{kind}: {asked:?}");
            let expected = [
                "watch=true",
                "sendInitialEvents=true",
                "resourceVersion=0",
                "resourceVersionMatch=NotOlderThan",
                "allowWatchBookmarks=true",
            ];
            assert!(has(&asked[0], &expected), "{asked:?}");
        }
    })
    .await;
}

/// One that is older, or told not to, is asked for lists of any version: those come from
/// its watch cache, too, unless the answer is to have pages.
#[rstest]
#[tokio::test]
async fn an_older_server_is_asked_for_lists(#[values("127.0.0.1", "[::1]")] host: &str) {
    local(async {
        let api = FakeApi::start(host).await;
        api.stream_no_lists();
        Watching::start(api.server()).lists(ALL.to_vec()).await;
        for kind in KINDS {
            let asked = api.asked(kind);
            let expected = ["resourceVersion=0", "resourceVersionMatch=NotOlderThan"];
            assert!(has(&asked[1], &expected), "{asked:?}");
            assert!(!asked[1].query.contains("watch=") && !asked[1].query.contains("limit="));
        }
    })
    .await;
}

/// When connections are cut, as an API server does that is stopped.
#[rstest]
#[tokio::test]
async fn a_watch_that_ends_is_resumed_without_a_list(#[values("127.0.0.1", "[::1]")] host: &str) {
    local(async {
        let api = FakeApi::start(host).await;
        let mut watching = Watching::start(api.server());
        watching.lists(ALL.to_vec()).await;
        api.send("services", "BOOKMARK", BOOKMARK);
        // Longer than a watch that failed as soon as it began.
        sleep(Duration::from_millis(1100)).await;
        api.close("services");
        until("resumed", || api.asked("services").len() > 1).await;
        let resumed = &api.asked("services")[1];
        assert!(
            has(resumed, &["watch=true", "resourceVersion=9"]),
            "{resumed:?}"
        );
        assert!(!resumed.query.contains("sendInitialEvents"), "{resumed:?}");
        assert!(watching.changes.try_recv().is_err(), "no news");
    })
    .await;
}

/// After a restart of the API server, which has forgotten it: a list, which is no older
/// than what is known.
#[rstest]
#[tokio::test]
async fn a_version_that_is_too_old_leads_to_one_list(#[values("127.0.0.1", "[::1]")] host: &str) {
    local(async {
        let api = FakeApi::start(host).await;
        let mut watching = Watching::start(api.server());
        watching.lists(ALL.to_vec()).await;
        api.send("services", "BOOKMARK", BOOKMARK);
        api.expire("services");
        watching.lists(vec![Kind::Service]).await;
        let asked = api.asked("services");
        assert!(
            has(&asked[1], &["sendInitialEvents=true", "resourceVersion=9"]),
            "{asked:?}"
        );
    })
    .await;
}

/// The others are watched all the same.
#[rstest]
#[tokio::test]
async fn a_missing_permission_stops_no_other_watch(
    #[values("nodes", "servicecidrs")] forbidden: &str,
) {
    local(async {
        let api = FakeApi::start("127.0.0.1").await;
        api.refuse(forbidden, Some(Refusal::status(403)));
        let mut watching = Watching::start(api.server());
        let other = if forbidden == "nodes" {
            Kind::ServiceCidr
        } else {
            Kind::Node
        };
        watching
            .lists(vec![Kind::Service, Kind::EndpointSlice, other])
            .await;
        api.refuse(forbidden, None);
        let granted = if forbidden == "nodes" {
            Kind::Node
        } else {
            Kind::ServiceCidr
        };
        watching.lists(vec![granted]).await;
    })
    .await;
}

/// All requests wait, as the API server says so of all.
#[rstest]
#[case(429)]
#[case(503)]
#[tokio::test]
async fn retry_after_is_honoured(#[case] status: u16) {
    local(async {
        let api = FakeApi::start("127.0.0.1").await;
        let refusal = Refusal {
            status,
            retry_after: Some(3),
        };
        api.refuse_once("services", refusal);
        Watching::start(api.server()).lists(ALL.to_vec()).await;
        let asked = api.asked("services");
        assert_eq!(asked.len(), 2, "{asked:?}");
        let waited = asked[1].at - asked[0].at;
        assert!(waited >= Duration::from_secs(3), "{waited:?}");
    })
    .await;
}

/// A rotated token is read when the old one is refused, at the latest.
#[rstest]
#[tokio::test]
async fn credentials_are_read_again_when_refused(#[values("127.0.0.1", "[::1]")] host: &str) {
    local(async {
        let api = FakeApi::start(host).await;
        api.require_token("new");
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = folder.path().join("kubeconfig");
        let token = folder.path().join("token");
        fs::write(&kubeconfig, kubeconfig_of(api.url(), &token)).expect("written");
        fs::write(&token, "old").expect("written");
        let mut watching = Watching::start(server(&kubeconfig).await);
        until("refused", || !api.asked("services").is_empty()).await;
        fs::write(&token, "new").expect("written");
        watching.lists(ALL.to_vec()).await;
        let agent = &api.asked("services")[0].headers["user-agent"];
        let agent = agent.to_str().expect("text");
        assert!(agent.starts_with("tandem-proxy-agent/") && agent.ends_with(" node/node-0"));
    })
    .await;
}

/// The same of certificates and addresses, which are read with it.
#[tokio::test]
async fn a_changed_kubeconfig_takes_effect_when_the_connection_fails() {
    local(async {
        let api = FakeApi::start("127.0.0.1").await;
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = folder.path().join("kubeconfig");
        let token = folder.path().join("token");
        fs::write(&token, "any").expect("written");
        // Nobody listens there.
        fs::write(&kubeconfig, kubeconfig_of("http://127.0.0.1:1", &token)).expect("written");
        let mut watching = Watching::start(server(&kubeconfig).await);
        fs::write(&kubeconfig, kubeconfig_of(api.url(), &token)).expect("written");
        watching.lists(ALL.to_vec()).await;
    })
    .await;
}

async fn server(kubeconfig: &std::path::Path) -> ApiServer {
    let access = Access {
        kubeconfig: Some(kubeconfig.to_owned()),
        ..Access::default()
    };
    kubernetes::api_server(&access, "node-0")
        .await
        .expect("a client")
}

fn kubeconfig_of(url: &str, token: &std::path::Path) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: '{url}'}}}}]
users: [{{name: u, user: {{tokenFile: '{}'}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
",
        token.display()
    )
}

const BOOKMARK: &str = concat!(
    r#"{"kind":"Service","apiVersion":"v1","metadata":"#,
    r#"{"resourceVersion":"9","creationTimestamp":null}}"#
);
