use proxy_common::family::{V4, V6};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::Problem;

fn parse(object: Value) -> (Node, Vec<String>) {
    let parsed = Node::from_api(serde_json::from_value(object).expect("a Node"));
    let problems = parsed.problems.iter().map(Problem::to_string).collect();
    (
        parsed.state.usable().expect("every Node is usable"),
        problems,
    )
}

#[test]
fn keeps_zone_prefixes_and_addresses() {
    let (node, problems) = parse(json!({
        "metadata": {"name": "node-1", "labels": {ZONE_LABEL: "zone-a"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "node-1"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "172.16.0.1"},
                {"type": "InternalIP", "address": "2001:db8::1"},
            ],
            "capacity": {"cpu": "2", "memory": "8Gi"},
        },
    }));
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(node.key.to_string(), "node-1");
    assert_eq!(node.zone.as_deref(), Some("zone-a"));
    assert_eq!(node.pod_cidr::<V4>(), Some(([10, 1, 0, 0].into(), 24)));
    let prefix = "fd00:1::".parse().expect("IPv6");
    assert_eq!(node.pod_cidr::<V6>(), Some((prefix, 64)));
    assert_eq!(node.ip::<V4>(), Some([172, 16, 0, 1].into()));
    let ip = "2001:db8::1".parse().expect("IPv6");
    assert_eq!(node.ip::<V6>(), Some(ip));
}

/// The zone is that of the node's label, and an empty one matches nothing (S35).
#[rstest]
#[case(json!({ZONE_LABEL: ""}))]
#[case(json!({"topology.kubernetes.io/region": "zone-a"}))]
#[case(json!(null))]
fn an_empty_zone_is_none(#[case] labels: Value) {
    let (node, _) = parse(json!({"metadata": {"name": "node-1", "labels": labels}}));
    assert_eq!(node.zone, None);
}

/// A node's address is its first `InternalIP`, else its first `ExternalIP` (S53).
#[test]
fn falls_back_to_external_addresses() {
    let (node, _) = parse(json!({
        "metadata": {"name": "node-1"},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    }));
    assert_eq!(node.ip::<V4>(), Some([192, 0, 2, 1].into()));
}

#[test]
fn bad_fields_leave_the_others() {
    let (node, problems) = parse(json!({
        "metadata": {"name": "node-1"},
        "spec": {"podCIDRs": ["10.1.0.0", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "node-1.example.com"},
            {"type": "InternalIP", "address": "172.16.0.1"},
        ]},
    }));
    assert_eq!(
        problems,
        [
            r#"podCIDR "10.1.0.0" is not a CIDR"#,
            r#"node address "node-1.example.com" is not an IP address"#,
        ]
    );
    assert_eq!((node.pod_cidrs.len(), node.addresses.len()), (1, 1));
}

#[test]
fn an_old_object_has_one_prefix() {
    let (node, _) = parse(json!({
        "metadata": {"name": "node-1"},
        "spec": {"podCIDR": "10.1.0.0/24"},
    }));
    assert_eq!(node.pod_cidr::<V4>(), Some(([10, 1, 0, 0].into(), 24)));
}

/// A deletion or the autoscaler's taint, with any effect, makes a node leave; other taints
/// and what cannot be read do not (S108).
#[rstest]
#[case::nothing(json!({}), json!([]), None, 0)]
#[case::deleted(json!({"deletionTimestamp": "2024-01-01T00:00:00Z"}), json!([]), Some(Leaving::Deleted), 0)]
#[case::null(json!({"deletionTimestamp": null}), json!(null), None, 0)]
#[case::to_be_deleted(
    json!({}),
    json!([{"key": "other"}, {"key": TO_BE_DELETED, "value": "1", "effect": "PreferNoSchedule"}]),
    Some(Leaving::ToBeDeleted),
    0
)]
#[case::others(json!({}), json!([{"key": "node.kubernetes.io/unschedulable"}]), None, 0)]
#[case::malformed(json!({}), json!([7, {"key": 7}, {"key": TO_BE_DELETED}]), Some(Leaving::ToBeDeleted), 2)]
#[case::no_list(json!({}), json!(7), None, 1)]
fn tells_whether_it_leaves(
    #[case] mut metadata: Value,
    #[case] taints: Value,
    #[case] expected: Option<Leaving>,
    #[case] problems: usize,
) {
    metadata["name"] = json!("node-1");
    let (node, found) = parse(json!({"metadata": metadata, "spec": {"taints": taints}}));
    assert_eq!(node.leaving, expected);
    assert_eq!(found.len(), problems, "{found:?}");
}
