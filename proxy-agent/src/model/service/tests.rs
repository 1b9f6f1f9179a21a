#![allow(clippy::needless_pass_by_value, reason = "`json!` makes values")]

mod external;

use proxy_common::family::{V4, V6};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::{Parsed, Problem};

fn parse(spec: Value) -> Parsed<Service> {
    parse_object(json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": spec,
    }))
}

fn parse_object(object: Value) -> Parsed<Service> {
    Service::from_api(serde_json::from_value(object).expect("a Service"))
}

/// The Service of a spec, and its problems as log lines.
fn service(spec: Value) -> (Service, Vec<String>) {
    let parsed = parse(spec);
    let problems = parsed.problems.iter().map(Problem::to_string).collect();
    (parsed.state.usable().expect("a proxied Service"), problems)
}

fn http(name: &str, port: u16) -> ServicePort {
    ServicePort::new(name, Protocol::TCP, port)
}

/// As `kubectl get service -o yaml` prints one (S4, S6).
#[test]
fn keeps_what_a_proxy_needs() {
    let (service, problems) = service(json!({
        "type": "ClusterIP",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00:96::a"],
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
        "internalTrafficPolicy": "Local",
        "sessionAffinity": "None",
        "selector": {"k8s-app": "kube-dns"},
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "dns-tcp"},
        ],
    }));
    let dns = ServicePort::new("dns", Protocol::UDP, 53);
    let expected = Service {
        key: ObjectKey::new("default", "web"),
        cluster_ips: FamilyIps {
            v4: Some([10, 96, 0, 10].into()),
            v6: Some("fd00:96::a".parse().expect("IPv6")),
        },
        internal_local: true,
        health_check_port: None,
        ports: vec![dns, http("dns-tcp", 53)],
        ..Service::default()
    };
    assert_eq!((service, problems), (expected, vec![]));
}

/// Fields that only other components read do not change a Service (S11).
#[test]
fn what_is_not_read_makes_no_difference() {
    let with = |annotations: Value, app_protocol: Value, more: Value| {
        let mut object = json!({
            "metadata": {"namespace": "default", "name": "web", "annotations": annotations},
            "spec": {
                "clusterIP": "10.96.0.10",
                "ports": [{"name": "http", "port": 80, "appProtocol": app_protocol}],
            },
        });
        let spec = object["spec"].as_object_mut().expect("a spec");
        spec.extend(more.as_object().cloned().expect("fields"));
        parse_object(object)
    };
    let plain = with(Value::Null, Value::Null, json!({}));
    assert!(plain.state.clone().usable().is_some() && plain.problems.is_empty());
    let annotations = json!({
        "service.kubernetes.io/topology-mode": "Auto",
        "service.kubernetes.io/topology-aware-hints": "auto",
        "service.alpha.kubernetes.io/tolerate-unready-endpoints": "true",
    });
    let distribution = json!({"trafficDistribution": "PreferSameNode"});
    let others = json!({
        "selector": {"app": "web"},
        "publishNotReadyAddresses": true,
        "allocateLoadBalancerNodePorts": false,
    });
    for other in [
        with(annotations, Value::Null, json!({})),
        with(Value::Null, json!("kubernetes.io/h2c"), json!({})),
        with(Value::Null, Value::Null, distribution),
        with(Value::Null, Value::Null, others),
    ] {
        assert_eq!(other, plain);
    }
}

/// The cluster IP of a family is found by `ipFamilies`, in old objects in `clusterIP` (S4).
#[rstest]
#[case::old_ipv4(json!({"clusterIP": "10.0.0.10"}), Some("10.0.0.10"), None)]
#[case::old_ipv6(json!({"clusterIP": "2000::1"}), None, Some("2000::1"))]
#[case::single_ipv4(
    json!({"clusterIPs": ["10.0.0.10"], "ipFamilies": ["IPv4"]}), Some("10.0.0.10"), None)]
#[case::single_ipv6(
    json!({"clusterIPs": ["2000::1"], "ipFamilies": ["IPv6"]}), None, Some("2000::1"))]
#[case::dual_ipv4_first(
    json!({"clusterIPs": ["10.0.0.10", "2000::1"], "ipFamilies": ["IPv4", "IPv6"]}),
    Some("10.0.0.10"), Some("2000::1"))]
#[case::dual_ipv6_first(
    json!({"clusterIPs": ["2000::1", "10.0.0.10"], "ipFamilies": ["IPv6", "IPv4"]}),
    Some("10.0.0.10"), Some("2000::1"))]
fn finds_the_cluster_ip_of_each_family(
    #[case] mut spec: Value,
    #[case] v4: Option<&str>,
    #[case] v6: Option<&str>,
) {
    if spec.get("clusterIP").is_none() {
        spec["clusterIP"] = spec["clusterIPs"][0].clone();
    }
    let (service, problems) = service(spec);
    let ips = service.cluster_ips;
    let print = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string());
    assert_eq!(print(ips.get::<V4>().map(IpAddr::V4)).as_deref(), v4);
    assert_eq!(print(ips.get::<V6>().map(IpAddr::V6)).as_deref(), v6);
    assert_eq!(problems, Vec::<String>::new());
}

/// Services of other proxies, headless ones and those without cluster IP are left out (S1, S2).
#[rstest]
#[case::no_cluster_ip(json!({}))]
#[case::empty_cluster_ip(json!({"clusterIP": ""}))]
#[case::headless(json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4"]}))]
#[case::external_name(
    json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": "10.0.0.10"}))]
fn leaves_out_what_is_not_proxied(#[case] spec: Value) {
    let parsed = parse(spec);
    assert_eq!((parsed.state.usable(), parsed.problems), (None, vec![]));
}

/// S1: any value of the label, an empty one as well.
#[rstest]
#[case("")]
#[case("other-proxy")]
fn leaves_out_services_of_other_proxies(#[case] value: &str) {
    let parsed = parse_object(json!({
        "metadata": {
            "namespace": "default", "name": "web", "labels": {PROXY_NAME_LABEL: value},
        },
        "spec": {"clusterIP": "10.0.0.10", "ports": [{"port": 0}]},
    }));
    assert_eq!((parsed.state.usable(), parsed.problems), (None, vec![]));
    assert_eq!(parsed.key, ObjectKey::new("default", "web"));
}

/// P9, S13: a bad address costs its family only.
#[rstest]
#[case::syntax(json!(["10.0.0", "fd00::1"]), r#"clusterIP "10.0.0" is not an IP address"#)]
#[case::family(json!(["fd00::2", "fd00::1"]), "clusterIP fd00::2 is not an IPv4 address")]
#[case::loopback(
    json!(["127.0.0.1", "fd00::1"]),
    "clusterIP 127.0.0.1 is a loopback address, which cannot be proxied")]
#[case::multicast(
    json!(["224.0.0.1", "fd00::1"]),
    "clusterIP 224.0.0.1 is a multicast address, which cannot be proxied")]
#[case::unspecified(
    json!(["0.0.0.0", "fd00::1"]),
    "clusterIP 0.0.0.0 is the unspecified address, which cannot be proxied")]
#[case::missing(
    json!(["", "fd00::1"]),
    "clusterIPs has no entry for IPv4, which ipFamilies lists")]
fn a_bad_cluster_ip_leaves_the_other(#[case] ips: Value, #[case] problem: &str) {
    let (service, problems) = service(json!({
        "clusterIP": "10.0.0.10",
        "clusterIPs": ips,
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"port": 80}],
    }));
    assert_eq!(problems, [problem]);
    assert_eq!(service.cluster_ips.v4, None);
    assert_eq!(
        service.cluster_ips.v6,
        Some("fd00::1".parse().expect("IPv6"))
    );
    assert_eq!(service.ports, [http("", 80)]);
}

#[test]
fn an_old_object_with_a_bad_address_has_one_problem() {
    let (service, problems) = service(json!({"clusterIP": "foobar"}));
    assert_eq!(service.cluster_ips, FamilyIps::default());
    assert_eq!(problems, [r#"clusterIP "foobar" is not an IP address"#]);
}

#[test]
fn cluster_ips_without_cluster_ip_are_named() {
    let parsed = parse(json!({"clusterIPs": ["10.0.0.10"], "ipFamilies": ["IPv4"]}));
    assert_eq!(parsed.state.usable(), None);
    assert_eq!(parsed.problems, [ServiceProblem::ClusterIpEmpty.into()]);
}

/// P9: a bad port costs itself only.
#[rstest]
#[case::zero(json!({"name": "bad", "port": 0}),
    r#"port "bad" has number 0, which is not in 1-65535"#)]
#[case::too_big(json!({"name": "bad", "port": 65536}),
    r#"port "bad" has number 65536, which is not in 1-65535"#)]
#[case::negative(json!({"name": "bad", "port": -80}),
    r#"port "bad" has number -80, which is not in 1-65535"#)]
#[case::protocol(json!({"name": "bad", "port": 81, "protocol": "tcp"}),
    r#"port "bad" has protocol "tcp", which is unknown"#)]
#[case::same_name(json!({"name": "good", "port": 81}),
    r#"port "good" TCP 81 repeats the name or the number of a port before it"#)]
#[case::same_number(json!({"name": "bad", "port": 80}),
    r#"port "bad" TCP 80 repeats the name or the number of a port before it"#)]
fn a_bad_port_leaves_the_others(#[case] bad: Value, #[case] problem: &str) {
    let (service, problems) = service(json!({
        "clusterIP": "10.0.0.10",
        "ports": [{"name": "good", "port": 80}, bad, {"name": "last", "port": 443}],
    }));
    assert_eq!(problems, [problem]);
    assert_eq!(service.ports, [http("good", 80), http("last", 443)]);
}

/// S6: one number under several protocols.
#[test]
fn protocols_share_port_numbers() {
    let (service, problems) = service(json!({
        "clusterIP": "10.0.0.10",
        "ports": [
            {"name": "tcp", "port": 80, "nodePort": 30080},
            {"name": "udp", "port": 80, "nodePort": 30080, "protocol": "UDP"},
            {"name": "sctp", "port": 80, "nodePort": 30080, "protocol": "SCTP"},
        ],
    }));
    let found: Vec<_> = service
        .ports
        .iter()
        .map(|p| (p.protocol, p.node_port))
        .collect();
    let expected = [Protocol::SCTP, Protocol::TCP, Protocol::UDP].map(|p| (p, Some(30080)));
    assert_eq!((found, problems), (expected.to_vec(), vec![]));
}

/// S15: the order of a list is no difference.
#[test]
fn order_does_not_matter() {
    let one = json!({
        "clusterIP": "10.0.0.10",
        "clusterIPs": ["10.0.0.10", "fd00::1"],
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
    });
    let other = json!({
        "clusterIP": "fd00::1",
        "clusterIPs": ["fd00::1", "10.0.0.10"],
        "ipFamilies": ["IPv6", "IPv4"],
        "ports": [{"name": "b", "port": 81}, {"name": "a", "port": 80}],
    });
    assert_eq!(parse(one), parse(other));
}

/// `externalTrafficPolicy` counts only where there is external traffic (S10).
#[rstest]
#[case(json!(null), false, 0)]
#[case(json!("Cluster"), false, 0)]
#[case(json!("Local"), true, 0)]
#[case::unknown_is_cluster(json!("local"), false, 1)]
fn reads_the_internal_traffic_policy(
    #[case] policy: Value,
    #[case] local: bool,
    #[case] count: usize,
) {
    let (service, problems) =
        service(json!({"clusterIP": "10.0.0.10", "internalTrafficPolicy": policy}));
    assert_eq!((service.internal_local, problems.len()), (local, count));
}

/// A client is forgotten after `timeoutSeconds` without a new connection (S72).
#[rstest]
#[case::none(json!({"sessionAffinity": "None"}), None, 0)]
#[case::default(json!({"sessionAffinity": "ClientIP"}), Some(10_800), 0)]
#[case::no_timeout(
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}),
    Some(10_800), 0)]
#[case::timeout(json!({
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
}), Some(5), 0)]
#[case::zero(json!({
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
}), Some(10_800), 1)]
#[case::negative(json!({
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -5}},
}), Some(10_800), 1)]
fn reads_session_affinity(
    #[case] mut spec: Value,
    #[case] seconds: Option<u32>,
    #[case] count: usize,
) {
    spec["clusterIP"] = json!("10.0.0.10");
    let (service, problems) = service(spec);
    assert_eq!((service.affinity, problems.len()), (seconds, count));
}

/// Names may begin with a digit and be 63 characters long (S14).
#[test]
fn names_are_kept_whole() {
    let namespace = "n".repeat(63);
    let name = format!("0{}", "s".repeat(62));
    let parsed = parse_object(json!({
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"clusterIP": "10.0.0.10"},
    }));
    assert_eq!(parsed.key, ObjectKey::new(namespace, name));
}

/// No API server takes such names, but a manifest may have them: the tables
/// have room for 63 bytes.
#[test]
fn names_must_fit_into_the_tables() {
    let (fits, long) = ("n".repeat(63), "n".repeat(64));
    let named = |namespace: &str, name: &str, port: &str| {
        parse_object(json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80, "name": port}]},
        }))
    };
    let parsed = named(&fits, &fits, &fits);
    assert_eq!(parsed.problems, []);
    assert_eq!(
        parsed.state.usable().map(|service| service.ports.len()),
        Some(1)
    );
    for (namespace, name) in [(&fits, &long), (&long, &fits)] {
        let parsed = named(namespace, name, "");
        assert_eq!((parsed.state.usable(), parsed.problems.len()), (None, 1));
    }
    for port in [&long, "a\0b"] {
        let parsed = named("default", "web", port);
        let problems: Vec<_> = parsed.problems.iter().map(Problem::to_string).collect();
        let expected =
            format!("name {port:?} does not fit into the tables (63 bytes), it is not served");
        assert_eq!(problems, [expected]);
        assert_eq!(
            parsed.state.usable().map(|service| service.ports.len()),
            Some(0)
        );
    }
}
