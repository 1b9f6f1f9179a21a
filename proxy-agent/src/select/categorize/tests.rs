//! Endpoints are written as one line each: name, then what holds of it. The
//! table is upstream's table of the same decisions, in this notation.

use std::sync::Arc;

use proptest::{collection::vec, prelude::*};
use rstest::rstest;

use super::*;
use crate::model::{
    Placement,
    generators::{self, THIS_NODE},
};

const CLUSTER: Policy = Policy {
    internal_local: false,
    external_local: false,
    externally_accessible: false,
};
const INTERNAL_LOCAL: Policy = Policy {
    internal_local: true,
    ..CLUSTER
};
/// With a NodePort; externalTrafficPolicy: Cluster.
const NODE_PORT: Policy = Policy {
    externally_accessible: true,
    ..CLUSTER
};
const NODE_PORT_INTERNAL_LOCAL: Policy = Policy {
    internal_local: true,
    ..NODE_PORT
};
const NODE_PORT_EXTERNAL_LOCAL: Policy = Policy {
    external_local: true,
    ..NODE_PORT
};
const NODE_PORT_BOTH_LOCAL: Policy = Policy {
    internal_local: true,
    ..NODE_PORT_EXTERNAL_LOCAL
};
/// externalTrafficPolicy: Local without anything external.
const EXTERNAL_LOCAL_ONLY: Policy = Policy {
    external_local: true,
    ..CLUSTER
};

/// `1 ready local zones=a,b nodes=node-0` and so on. "draining" is serving and
/// terminating; without any condition the endpoint is merely not ready.
fn endpoint(line: &str) -> Endpoint {
    let mut words = line.split(' ');
    let last_octet: u8 = words.next().and_then(|n| n.parse().ok()).expect("a number");
    let mut endpoint = Endpoint {
        ip: [10, 0, 0, last_octet].into(),
        ready: false,
        serving: false,
        terminating: false,
        placement: Arc::default(),
    };
    let mut placement = Placement {
        node: Some("elsewhere".into()),
        ..Placement::default()
    };
    let names = |list: &str| list.split(',').map(Box::from).collect();
    for word in words {
        match word.split_once('=') {
            None if word == "ready" => (endpoint.ready, endpoint.serving) = (true, true),
            None if word == "draining" => (endpoint.serving, endpoint.terminating) = (true, true),
            None if word == "terminating" => endpoint.terminating = true,
            None if word == "serving" => endpoint.serving = true,
            None if word == "local" => placement.node = Some(THIS_NODE.into()),
            None if word == "nowhere" => placement.node = None,
            Some(("zones", list)) => placement.zone_hints = names(list),
            Some(("nodes", list)) => placement.node_hints = names(list),
            _ => panic!("{word:?} says nothing about an endpoint"),
        }
    }
    endpoint.placement = placement.shared();
    endpoint
}

fn this_node(zone: &str) -> NodeContext {
    NodeContext {
        zone: Some(zone.to_owned()).filter(|zone| !zone.is_empty()),
        ..NodeContext::new(THIS_NODE)
    }
}

/// The last octets of both sets, and whether anyone could serve.
fn categorize(policy: Policy, zone: &str, lines: &[&str]) -> (Vec<u8>, Vec<u8>, bool) {
    let node = this_node(zone);
    let endpoints: Vec<_> = lines.iter().copied().map(endpoint).collect();
    let categories = Categories::new(endpoints.iter(), policy, &node);
    let set = |member: fn(&EndpointUse) -> bool| {
        let members = endpoints
            .iter()
            .filter(|e| member(&categories.endpoint_use(e)));
        members
            .map(|e| {
                e.ip.to_string()
                    .rsplit('.')
                    .next()
                    .and_then(|n| n.parse().ok())
                    .expect("an octet")
            })
            .collect()
    };
    (set(|u| u.cluster), set(|u| u.local), categories.has_any())
}

#[rstest]
#[case::zone_hints_are_followed(CLUSTER, "a",
    &["3 ready zones=a", "4 ready zones=b", "5 ready zones=c", "6 ready zones=a"],
    &[3, 6], &[], true)]
#[case::local_external_policy_ignores_hints(NODE_PORT_EXTERNAL_LOCAL, "a",
    &["3 ready local zones=a", "4 ready local zones=b", "5 ready zones=c", "6 ready zones=a"],
    &[3, 6], &[3, 4], true)]
#[case::local_internal_policy_ignores_hints(NODE_PORT_INTERNAL_LOCAL, "a",
    &["3 ready local zones=a", "4 ready local zones=b", "5 ready zones=c", "6 ready zones=a"],
    &[3, 6], &[3, 4], true)]
#[case::node_without_zone(CLUSTER, "", &["3 ready zones=a"], &[3], &[], true)]
#[case::no_endpoint_for_our_zone(CLUSTER, "b", &["3 ready zones=a"], &[3], &[], true)]
#[case::unready_in_our_zone(CLUSTER, "a",
    &["3 ready zones=a", "4 ready zones=b", "5 ready zones=c", "6 zones=a"],
    &[3], &[], true)]
#[case::only_unready_in_our_zone(CLUSTER, "a",
    &["3 zones=a", "4 ready zones=b", "5 ready zones=c", "6 zones=a"],
    &[4, 5], &[], true)]
#[case::a_missing_hint_turns_hints_off(CLUSTER, "a",
    &["3 ready zones=a", "4 ready zones=b", "5 ready", "6 ready zones=a"],
    &[3, 4, 5, 6], &[], true)]
#[case::a_missing_hint_of_an_unready_one_does_not(CLUSTER, "a",
    &["3 ready zones=a", "4 ready zones=b", "5"],
    &[3], &[], true)]
#[case::several_zones_per_endpoint(CLUSTER, "c",
    &["3 ready zones=a,b,c", "4 ready zones=b,c", "5 ready zones=b,d", "6 ready zones=c"],
    &[3, 4, 6], &[], true)]
#[case::the_sets_may_cross(NODE_PORT_EXTERNAL_LOCAL, "a",
    &["0 ready local zones=a", "1 ready local zones=b", "2 ready zones=a", "3 ready zones=b"],
    &[0, 2], &[0, 1], true)]
#[case::node_hints_are_followed(CLUSTER, "a",
    &["1 ready nodes=node-0", "2 ready nodes=node-1", "3 ready nodes=node-0,node-1"],
    &[1, 3], &[], true)]
#[case::node_hints_come_before_zone_hints(CLUSTER, "a",
    &["1 ready zones=a nodes=node-0", "2 ready zones=a nodes=node-1", "3 ready zones=b nodes=node-2"],
    &[1], &[], true)]
#[case::node_hints_not_placement_decide(CLUSTER, "a",
    &["1 ready nodes=node-0", "2 ready local nodes=node-1"],
    &[1], &[], true)]
#[case::no_hint_for_our_node_leaves_the_zone(CLUSTER, "a",
    &["1 ready zones=a nodes=node-1", "2 ready zones=a nodes=node-2", "3 ready zones=b nodes=node-3"],
    &[1, 2], &[], true)]
#[case::a_missing_node_hint_leaves_the_zone(CLUSTER, "a",
    &["1 ready zones=a nodes=node-0", "2 ready zones=a", "3 ready zones=b nodes=node-3"],
    &[1, 2], &[], true)]
#[case::no_hint_for_node_nor_zone(CLUSTER, "c",
    &["1 ready zones=a nodes=node-1", "2 ready zones=b nodes=node-2"],
    &[1, 2], &[], true)]
#[case::unready_for_our_node_leaves_the_zone(CLUSTER, "a",
    &["1 zones=a nodes=node-0", "2 ready zones=a nodes=node-1", "3 ready zones=b nodes=node-2"],
    &[2], &[], true)]
#[case::local_without_endpoints(INTERNAL_LOCAL, "", &[], &[], &[], false)]
#[case::cluster_without_endpoints(CLUSTER, "", &[], &[], &[], false)]
#[case::local_with_all_remote(INTERNAL_LOCAL, "",
    &["0 ready", "1 ready"], &[], &[], true)]
#[case::local_with_all_local(INTERNAL_LOCAL, "",
    &["0 ready local", "1 ready local"], &[], &[0, 1], true)]
#[case::local_with_some_local(INTERNAL_LOCAL, "",
    &["0 ready local", "1 ready"], &[], &[0], true)]
#[case::none_ready(CLUSTER, "", &["0", "1"], &[], &[], false)]
#[case::some_ready(CLUSTER, "", &["0", "1 ready"], &[1], &[], true)]
#[case::all_draining(CLUSTER, "", &["0 draining local", "1 draining"], &[0, 1], &[], true)]
#[case::draining_ignores_hints(CLUSTER, "a",
    &["0 draining zones=a", "1 draining zones=b"], &[0, 1], &[], true)]
#[case::internal_local_external_cluster(NODE_PORT_INTERNAL_LOCAL, "",
    &["0 ready local", "1 ready"], &[0, 1], &[0], true)]
#[case::internal_cluster_external_local(NODE_PORT_EXTERNAL_LOCAL, "",
    &["0 ready local", "1 ready"], &[0, 1], &[0], true)]
#[case::both_local(NODE_PORT_BOTH_LOCAL, "",
    &["0 ready local", "1 ready"], &[0, 1], &[0], true)]
#[case::both_local_all_remote(NODE_PORT_BOTH_LOCAL, "",
    &["0 ready", "1 ready"], &[0, 1], &[], true)]
#[case::both_local_all_remote_and_draining(NODE_PORT_BOTH_LOCAL, "",
    &["0 draining", "1 draining"], &[0, 1], &[], true)]
#[case::draining_here_ready_there(NODE_PORT_EXTERNAL_LOCAL, "",
    &["0 ready", "1 local", "2 draining local", "3 draining"], &[0], &[2], true)]
#[case::external_policy_without_anything_external(EXTERNAL_LOCAL_ONLY, "",
    &["0 ready", "1 ready local"], &[0, 1], &[], true)]
#[case::internal_only_service_has_no_cluster_set(INTERNAL_LOCAL, "",
    &["0 ready", "1 ready local"], &[], &[1], true)]
#[case::local_draining(INTERNAL_LOCAL, "",
    &["0 draining local", "1 draining"], &[], &[0], true)]
#[case::serving_alone_is_not_draining(CLUSTER, "", &["0 serving"], &[], &[], false)]
#[case::terminating_alone_is_not_draining(CLUSTER, "", &["0 terminating"], &[], &[], false)]
#[case::an_endpoint_without_node_is_never_local(INTERNAL_LOCAL, "",
    &["0 ready nowhere"], &[], &[], true)]
fn categorizes(
    #[case] policy: Policy,
    #[case] zone: &str,
    #[case] endpoints: &[&str],
    #[case] cluster: &[u8],
    #[case] local: &[u8],
    #[case] has_any: bool,
) {
    let actual = categorize(policy, zone, endpoints);
    assert_eq!(actual, (cluster.to_vec(), local.to_vec(), has_any));
}

/// S41a: A and B are ready here, C drains here, D is gone but for its record,
/// E is ready elsewhere, F drains elsewhere.
#[rstest]
#[case::all("ABCDE", &[1, 2, 5], &[1, 2], true)]
#[case::no_ready_here("CDE", &[5], &[3], true)]
#[case::only_draining_elsewhere("DF", &[6], &[], true)]
#[case::none_serving("D", &[], &[], false)]
#[case::no_ready_anywhere("CDF", &[3, 6], &[3], true)]
fn worked_cases(
    #[case] present: &str,
    #[case] cluster: &[u8],
    #[case] local: &[u8],
    #[case] has_any: bool,
) {
    let all = [
        ('A', "1 ready local"),
        ('B', "2 ready local"),
        ('C', "3 draining local"),
        ('D', "4 terminating local"),
        ('E', "5 ready"),
        ('F', "6 draining"),
    ];
    let lines: Vec<_> = all
        .iter()
        .filter(|(name, _)| present.contains(*name))
        .map(|(_, line)| *line)
        .collect();
    let actual = categorize(NODE_PORT_EXTERNAL_LOCAL, "", &lines);
    assert_eq!(actual, (cluster.to_vec(), local.to_vec(), has_any));
    let actual = categorize(NODE_PORT, "", &lines);
    assert_eq!(actual, (cluster.to_vec(), vec![], has_any));
}

/// S21: a node that does not know its name has no local endpoints.
#[test]
fn a_nameless_node_has_nothing_local() {
    let mut nameless = endpoint("0 ready");
    nameless.placement = Arc::new(Placement {
        node: Some("".into()),
        ..Placement::default()
    });
    let node = NodeContext::new("");
    assert!(!is_local(&nameless, &node));
}

fn policy() -> impl Strategy<Value = Policy> {
    any::<[bool; 3]>().prop_map(
        |[internal_local, external_local, externally_accessible]| Policy {
            internal_local,
            external_local,
            externally_accessible,
        },
    )
}

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    vec(generators::endpoint(crate::model::IpFamily::V6), 0..6)
}

proptest! {
    /// S31–S36 as laws, whatever the endpoints.
    #[test]
    fn sets_obey_their_laws(
        endpoints in endpoints(),
        policy in policy(),
        zone in proptest::option::of(generators::zone()),
    ) {
        let node = NodeContext { zone: zone.map(String::from), ..NodeContext::new(THIS_NODE) };
        let categories = Categories::new(endpoints.iter(), policy, &node);
        let cluster: Vec<_> =
            endpoints.iter().filter(|e| categories.endpoint_use(e).cluster).collect();
        let local: Vec<_> =
            endpoints.iter().filter(|e| categories.endpoint_use(e).local).collect();

        for endpoint in cluster.iter().chain(&local) {
            prop_assert!(endpoint.ready || endpoint.is_last_resort());
        }
        prop_assert!(local.iter().all(|e| is_local(e, &node)));
        // A set is all ready or all last resort, never a mixture.
        for set in [&cluster, &local] {
            prop_assert!(set.iter().all(|e| e.ready) || set.iter().all(|e| !e.ready));
        }
        prop_assert!(policy.uses_cluster() || cluster.is_empty());
        prop_assert!(policy.uses_local() || local.is_empty());
        prop_assert!(policy.uses_cluster() || policy.uses_local());
        // Whoever can serve is found, wherever it is.
        if policy.uses_cluster() {
            prop_assert_eq!(categories.has_any(), !cluster.is_empty());
        }
        prop_assert!(categories.has_any() || local.is_empty());
        // Without hints, ready endpoints here are a part of those everywhere.
        let hinted = endpoints.iter().any(|e| !e.placement.zone_hints.is_empty() || !e.placement.node_hints.is_empty());
        if !hinted && policy.uses_cluster() && local.iter().all(|e| e.ready) {
            prop_assert!(local.iter().all(|e| cluster.contains(e)));
        }
    }
}
