#![allow(clippy::needless_pass_by_value, reason = "`json!` makes values")]

use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::{Parsed, Problem};

fn parse_object(object: Value) -> Parsed<EndpointSlice> {
    EndpointSlice::from_api(serde_json::from_value(object).expect("an EndpointSlice"))
}

fn parse(address_type: &str, ports: Value, endpoints: Value) -> Parsed<EndpointSlice> {
    parse_object(json!({
        "metadata": {
            "namespace": "default", "name": "web-abc12",
            "labels": {SERVICE_NAME_LABEL: "web"},
        },
        "addressType": address_type,
        "ports": ports,
        "endpoints": endpoints,
    }))
}

/// The slice, and its problems as log lines.
fn slice(parsed: Parsed<EndpointSlice>) -> (EndpointSlice, Vec<String>) {
    let problems = parsed.problems.iter().map(Problem::to_string).collect();
    (parsed.state.usable().expect("a usable slice"), problems)
}

fn addresses(slice: &EndpointSlice) -> Vec<String> {
    slice.endpoints.iter().map(|e| e.ip.to_string()).collect()
}

/// As the controller writes one.
#[test]
fn keeps_what_a_proxy_needs() {
    let (slice, problems) = slice(parse(
        "IPv6",
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}]),
        json!([{
            "addresses": ["fd00::1", "fd00::ffff"],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "hints": {
                "forZones": [{"name": "zone-b"}, {"name": "zone-a"}],
                "forNodes": [{"name": "node-1"}],
            },
            "nodeName": "node-1",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-1"},
            "zone": "zone-a",
        }]),
    ));
    let expected = EndpointSlice {
        key: ObjectKey::new("default", "web-abc12"),
        service: ObjectKey::new("default", "web"),
        family: IpFamily::V6,
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::TCP,
            port: 8080,
        }],
        endpoints: vec![Endpoint {
            ip: "fd00::1".parse().expect("IPv6"),
            ready: true,
            serving: true,
            terminating: false,
            placement: Arc::new(Placement {
                node: Some("node-1".into()),
                zone_hints: ["zone-a".into(), "zone-b".into()].into(),
                node_hints: ["node-1".into()].into(),
            }),
        }],
    };
    assert_eq!((slice, problems), (expected, vec![]));
}

/// Slices of headless Services are left out, and those of nobody (S17).
#[rstest]
#[case::headless(
    json!({SERVICE_NAME_LABEL: "web", HEADLESS_LABEL: ""}), "IPv4", vec![])]
#[case::no_owner(json!({}), "IPv4", vec![EndpointSliceProblem::NoServiceName])]
#[case::empty_owner(
    json!({SERVICE_NAME_LABEL: ""}), "IPv4", vec![EndpointSliceProblem::NoServiceName])]
#[case::host_names(json!({SERVICE_NAME_LABEL: "web"}), "FQDN", vec![])]
#[case::unknown_type(
    json!({SERVICE_NAME_LABEL: "web"}), "IPv5",
    vec![EndpointSliceProblem::AddressType("IPv5".to_owned())])]
fn leaves_out_what_is_not_proxied(
    #[case] labels: Value,
    #[case] address_type: &str,
    #[case] problems: Vec<EndpointSliceProblem>,
) {
    let parsed = parse_object(json!({
        "metadata": {"namespace": "default", "name": "web-abc12", "labels": labels},
        "addressType": address_type,
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    }));
    assert_eq!(parsed.state.usable(), None);
    let problems: Vec<_> = problems.into_iter().map(Problem::from).collect();
    assert_eq!(parsed.problems, problems);
}

/// Missing conditions mean ready, serving and not terminating (S19).
#[rstest]
#[case::absent(json!(null), (true, true, false))]
#[case::empty(json!({}), (true, true, false))]
#[case::unready(json!({"ready": false}), (false, true, false))]
#[case::terminating(
    json!({"ready": false, "serving": true, "terminating": true}), (false, true, true))]
#[case::published_though_terminating(
    json!({"ready": true, "serving": false, "terminating": true}), (true, false, true))]
fn conditions_have_defaults(#[case] conditions: Value, #[case] expected: (bool, bool, bool)) {
    let endpoints = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
    let (slice, _) = slice(parse("IPv4", json!([]), endpoints));
    let endpoint = &slice.endpoints[0];
    let actual = (endpoint.ready, endpoint.serving, endpoint.terminating);
    assert_eq!(actual, expected);
}

/// P9, S13, S18: a bad address costs its endpoint only.
#[rstest]
#[case::syntax("IPv4", json!(["10.0.0.256"]), &["10.0.0.1"],
    r#"endpoint address "10.0.0.256" is not an IP address"#)]
#[case::family("IPv4", json!(["fd00::1"]), &["10.0.0.1"],
    "endpoint address fd00::1 is not an IPv4 address")]
#[case::other_family("IPv6", json!(["10.0.0.1"]), &["fd00::1"],
    "endpoint address 10.0.0.1 is not an IPv6 address")]
#[case::mapped("IPv6", json!(["::ffff:10.0.0.1"]), &["fd00::1"],
    "endpoint address 10.0.0.1 is not an IPv6 address")]
#[case::loopback("IPv6", json!(["::1"]), &["fd00::1"],
    "endpoint address ::1 is a loopback address, which cannot be proxied")]
#[case::link_local("IPv4", json!(["169.254.169.254"]), &["10.0.0.1"],
    "endpoint address 169.254.169.254 is a link-local address, which cannot be proxied")]
#[case::multicast("IPv4", json!(["224.0.0.1"]), &["10.0.0.1"],
    "endpoint address 224.0.0.1 is a multicast address, which cannot be proxied")]
#[case::unspecified("IPv6", json!(["::"]), &["fd00::1"],
    "endpoint address :: is the unspecified address, which cannot be proxied")]
#[case::none("IPv4", json!([]), &["10.0.0.1"], "an endpoint has no address")]
#[case::twice("IPv4", json!(["10.0.0.001"]), &["10.0.0.1"],
    "endpoint address 10.0.0.1 occurs twice")]
fn a_bad_endpoint_leaves_the_others(
    #[case] address_type: &str,
    #[case] bad: Value,
    #[case] good: &[&str],
    #[case] problem: &str,
) {
    let endpoints = json!([{"addresses": good}, {"addresses": bad}]);
    let (slice, problems) = slice(parse(address_type, json!([]), endpoints));
    assert_eq!(problems, [problem]);
    assert_eq!(addresses(&slice), good);
}

/// Ports of slices are matched by name and protocol (S20).
#[rstest]
#[case::no_name(json!({"port": 80}),
    r#"a port has no name; the unnamed port of a Service is called """#)]
#[case::no_number(json!({"name": "bad"}),
    r#"port "bad" has no number; slices for all ports are not supported"#)]
#[case::zero(json!({"name": "bad", "port": 0}),
    r#"port "bad" has number 0, which is not in 1-65535"#)]
#[case::too_big(json!({"name": "bad", "port": 65536}),
    r#"port "bad" has number 65536, which is not in 1-65535"#)]
#[case::protocol(json!({"name": "bad", "port": 80, "protocol": "QUIC"}),
    r#"port "bad" has protocol "QUIC", which is unknown"#)]
#[case::twice(json!({"name": "", "port": 8080, "protocol": "TCP"}),
    r#"port "" TCP 8080 occurs twice"#)]
fn a_bad_port_leaves_the_others(#[case] bad: Value, #[case] problem: &str) {
    let ports = json!([{"name": "", "port": 8080}, bad]);
    let (slice, problems) = slice(parse("IPv4", ports, json!([])));
    assert_eq!(problems, [problem]);
    let unnamed = EndpointPort {
        name: "".into(),
        protocol: Protocol::TCP,
        port: 8080,
    };
    assert_eq!(slice.ports, [unnamed]);
}

/// An address of two endpoints belongs to the live pod, in either order (S23).
#[rstest]
#[case(json!([{"terminating": true, "ready": false}, {}]))]
#[case(json!([{}, {"terminating": true, "ready": false}]))]
fn a_reused_address_belongs_to_the_live_pod(#[case] conditions: Value) {
    let endpoints = conditions.as_array().expect("conditions").iter();
    let endpoints: Vec<_> = endpoints
        .map(|conditions| json!({"addresses": ["10.0.0.1"], "conditions": conditions}))
        .collect();
    let (slice, problems) = slice(parse("IPv4", json!([]), json!(endpoints)));
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(slice.endpoints.len(), 1);
    assert!(slice.endpoints[0].ready && !slice.endpoints[0].terminating);
}

/// S25: endpoints and ports have no order.
#[test]
fn order_does_not_matter() {
    let parse = |ports, ips: [&str; 2]| {
        let endpoints = ips.map(|ip| json!({"addresses": [ip]}));
        parse("IPv4", ports, json!(endpoints))
    };
    let one = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let other = json!([{"name": "b", "port": 81}, {"name": "a", "port": 80}]);
    assert_eq!(
        parse(one, ["10.0.0.1", "10.0.0.2"]),
        parse(other, ["10.0.0.2", "10.0.0.1"])
    );
}

/// An annotation says when the change happened (S28).
#[rstest]
#[case("1970-01-01T00:00:01.5Z", Some(Duration::from_millis(1500)))]
#[case("1970-01-01T01:00:00+01:00", Some(Duration::ZERO))]
#[case("yesterday", None)]
fn reads_the_trigger_time(#[case] raw: &str, #[case] expected: Option<Duration>) {
    let parsed = parse_object(json!({
        "metadata": {
            "namespace": "default", "name": "web-abc12",
            "annotations": {TRIGGER_TIME_ANNOTATION: raw},
        },
        "addressType": "IPv4",
        "endpoints": [],
    }));
    assert_eq!(
        parsed.triggered,
        expected.map(|since| SystemTime::UNIX_EPOCH + since)
    );
}
