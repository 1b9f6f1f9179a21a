use std::time::Duration;

use proxy_common::family::{V4, V6};
use rstest::rstest;
use serde_json::Value;

use super::*;
use crate::{
    health::state::NodeState,
    index::Index,
    model::{IpFamily, Leaving},
};

/// A proxy that serves both families.
fn working() -> Health {
    let health = Health::default();
    health.start([IpFamily::V4, IpFamily::V6]);
    health.attached();
    let index = Index::new("node-1");
    health.synced::<V4>(&index, &[].into(), true);
    health.synced::<V6>(&index, &[].into(), true);
    health.set_node(NodeState::Here(None));
    health
}

fn ask(health: &Health, path: &str) -> (u16, Value) {
    let answer = respond(path, health, &Metrics::default());
    let body = serde_json::from_str(answer.body()).expect("JSON");
    (answer.status().as_u16(), body)
}

/// The cases of kube-proxy's own test: the autoscaler's taint and a deletion concern
/// /healthz alone, other taints nothing; without a Node object there are no clients (S108).
#[rstest]
#[case::some_node(NodeState::Here(None), true, 200)]
#[case::to_be_deleted(NodeState::Here(Some(Leaving::ToBeDeleted)), true, 503)]
#[case::deleted(NodeState::Here(Some(Leaving::Deleted)), true, 503)]
#[case::never_seen(NodeState::Missing, true, 503)]
#[case::manifests_without_nodes(NodeState::Missing, false, 200)]
#[case::manifests_with_a_leaving_node(NodeState::Here(Some(Leaving::Deleted)), false, 503)]
fn the_node_counts_for_healthz_alone(
    #[case] node: NodeState,
    #[case] is_needed: bool,
    #[case] status: u16,
) {
    let health = working();
    health.set_node(node);
    if is_needed {
        health.need_node("node-1");
    }
    let (healthz, body) = ask(&health, "/healthz");
    assert_eq!(healthz, status);
    assert_eq!(body["nodeEligible"], status == 200);
    assert_eq!(body["healthy"], true, "the proxy itself is well");
    let reasons = body["reasons"].as_array().expect("a list").len();
    assert_eq!(reasons, usize::from(status != 200));
    let (livez, body) = ask(&health, "/livez");
    assert_eq!(livez, 200);
    assert_eq!(body.get("nodeEligible"), None);
    assert_eq!(body["reasons"], serde_json::json!([]));
}

/// A node that comes back is asked again.
#[test]
fn a_node_that_stays_after_all_is_eligible_again() {
    let health = working();
    health.set_node(NodeState::Here(Some(Leaving::ToBeDeleted)));
    assert_eq!(ask(&health, "/healthz").0, 503);
    health.set_node(NodeState::Here(None));
    assert_eq!(ask(&health, "/healthz").0, 200);
}

#[rstest]
#[case("/healthz", true)]
#[case("/livez", false)]
fn looks_as_kube_proxys(#[case] path: &str, #[case] has_node: bool) {
    let answer = respond(path, &working(), &Metrics::default());
    let headers: Vec<_> = answer
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
        .collect();
    let expected = [
        "content-type: application/json",
        "x-content-type-options: nosniff",
    ];
    assert_eq!(headers, expected);
    let body: Value = serde_json::from_str(answer.body()).expect("JSON");
    let v4 = &body["status"]["IPv4"];
    let (updated, now) = (&body["lastUpdated"], &body["currentTime"]);
    assert_eq!(updated, now, "whoever is well is up to date (S107)");
    let node = if has_node {
        r#""nodeEligible":true,"#
    } else {
        ""
    };
    let expected = format!(
        r#"{{"lastUpdated":{updated},"currentTime":{now},{node}"healthy":true,"status":{{"IPv4":{{"lastUpdated":{},"healthy":true}},"IPv6":{{"lastUpdated":{},"healthy":true}}}},"reasons":[]}}"#,
        v4["lastUpdated"], body["status"]["IPv6"]["lastUpdated"],
    );
    assert_eq!(answer.body(), &expected);
}

/// A late family fails both pages, and the last update is the real one (S106, S107).
#[tokio::test(start_paused = true)]
async fn a_late_family_fails_both_pages() {
    let health = working();
    health.queued::<V6>(tokio::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(61)).await;
    for path in ["/healthz", "/livez"] {
        let (status, body) = ask(&health, path);
        assert_eq!(
            (status, &body["healthy"]),
            (503, &Value::Bool(false)),
            "{path}"
        );
        assert_eq!(body["status"]["IPv4"]["healthy"], true);
        assert_eq!(body["status"]["IPv6"]["healthy"], false);
        assert_eq!(body["lastUpdated"], body["status"]["IPv4"]["lastUpdated"]);
        assert_ne!(body["lastUpdated"], body["currentTime"]);
        let reason = "IPv6: changes have been waiting for 61 s to be programmed";
        assert_eq!(body["reasons"], serde_json::json!([reason]));
    }
}

/// Times are Go's: RFC 3339 with as many digits as there are, in UTC (S105).
#[rstest]
#[case(
    Some(Duration::new(1_700_000_000, 123_456_789)),
    "2023-11-14T22:13:20.123456789Z"
)]
#[case(
    Some(Duration::new(1_700_000_000, 120_000_000)),
    "2023-11-14T22:13:20.12Z"
)]
#[case(Some(Duration::new(1_700_000_000, 0)), "2023-11-14T22:13:20Z")]
#[case(None, "0001-01-01T00:00:00Z")]
fn times_are_as_go_writes_them(#[case] since_epoch: Option<Duration>, #[case] expected: &str) {
    let at = since_epoch.map(|since| SystemTime::UNIX_EPOCH + since);
    assert_eq!(time(at), expected);
}

#[test]
fn other_paths_are_not_found() {
    let answer = respond("/", &working(), &Metrics::default());
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.body(), "404 page not found\n");
}
