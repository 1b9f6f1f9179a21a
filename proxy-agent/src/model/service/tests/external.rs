//! Fields of a Service for clients outside the cluster.

#![allow(clippy::needless_pass_by_value, reason = "`json!` makes values")]

use rstest::rstest;
use serde_json::{Value, json};

use super::*;

/// As `kubectl get service -o yaml` prints one (S7–S10, S12, S72).
#[test]
fn keeps_external_addresses() {
    let parsed = parse_object(json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:96::a"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["203.0.113.250", "2001:DB8::cb00:71fa", "192.0.2.007"],
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 32000,
            "loadBalancerIP": "203.0.113.9",
            "loadBalancerSourceRanges": [" 172.30.0.041/025 ", "2001:db8::/32"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90}},
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.7", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]},
            {"ip": "2001:db8::7"},
            {"hostname": "lb.example.com"},
            {"ip": "198.51.100.8", "ipMode": "Proxy"},
        ]}},
    }));
    let expected = Service {
        key: ObjectKey::new("default", "web"),
        cluster_ips: FamilyIps {
            v4: Some([10, 96, 0, 10].into()),
            v6: Some("fd00:96::a".parse().expect("IPv6")),
        },
        external_ips: ips(&["192.0.2.7", "203.0.113.250", "2001:db8::cb00:71fa"]),
        load_balancer_ips: ips(&["198.51.100.7", "2001:db8::7"]),
        source_ranges: ["172.30.0.0/25", "2001:db8::/32"]
            .map(|range| range.parse().expect("a CIDR"))
            .into(),
        unusable_source_ranges: false,
        internal_local: false,
        external_local: true,
        affinity: Some(90),
        health_check_port: Some(32000),
        ports: vec![ServicePort {
            node_port: Some(30080),
            ..http("http", 80)
        }],
    };
    assert_eq!(
        (parsed.state.usable(), parsed.problems),
        (Some(expected), vec![])
    );
}

fn ips(ips: &[&str]) -> Vec<IpAddr> {
    let ips = ips.iter().map(|ip| ip.parse().expect("an address"));
    ips.collect()
}

/// P9: a bad entry costs itself only.
#[rstest]
#[case::external_syntax(json!({"externalIPs": ["10.0.0", "192.0.2.7"]}),
    r#"externalIPs: "10.0.0" is not an IP address"#)]
#[case::external_loopback(json!({"externalIPs": ["192.0.2.7", "::1"]}),
    "externalIPs: ::1 is a loopback address, which cannot be proxied")]
#[case::external_unspecified(json!({"externalIPs": ["0.0.0.0", "192.0.2.7"]}),
    "externalIPs: 0.0.0.0 is the unspecified address, which cannot be proxied")]
#[case::source_range(
    json!({"externalIPs": ["192.0.2.7"], "loadBalancerSourceRanges": ["10.0.0.0"]}),
    "loadBalancerSourceRanges: \"10.0.0.0\" is not a CIDR, families without another range \
     admit nobody to the load balancer")]
#[case::external_policy(
    json!({"externalIPs": ["192.0.2.7"], "externalTrafficPolicy": "local"}),
    r#"externalTrafficPolicy "local" is unknown, Cluster is used"#)]
#[case::affinity(
    json!({"externalIPs": ["192.0.2.7"], "sessionAffinity": "clientip"}),
    r#"sessionAffinity "clientip" is unknown, None is used"#)]
#[case::node_port(
    json!({"externalIPs": ["192.0.2.7"], "ports": [{"port": 80, "nodePort": 70000}]}),
    r#"port "" has nodePort 70000, which is not in 1-65535"#)]
#[case::negative_node_port(
    json!({"externalIPs": ["192.0.2.7"], "ports": [{"port": 80, "nodePort": -1}]}),
    r#"port "" has nodePort -1, which is not in 1-65535"#)]
fn a_bad_field_leaves_the_others(#[case] mut spec: Value, #[case] problem: &str) {
    spec["clusterIP"] = json!("10.0.0.10");
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    let (service, problems) = service(spec);
    assert_eq!(problems, [problem]);
    assert_eq!(service.external_ips, ips(&["192.0.2.7"]));
    assert_eq!(service.ports, [http("", 80)]);
    assert_eq!(service.source_ranges, []);
    assert_eq!((service.external_local, service.affinity), (false, None));
}

/// S8: whatever the type.
#[rstest]
#[case::address(json!({"ip": "192.0.2.7"}), true, None)]
#[case::vip(json!({"ip": "192.0.2.7", "ipMode": "VIP"}), true, None)]
#[case::proxy(json!({"ip": "192.0.2.7", "ipMode": "Proxy"}), false, None)]
#[case::unknown(json!({"ip": "192.0.2.7", "ipMode": "vip"}), false,
    Some(r#"load balancer ingress 192.0.2.7: ipMode "vip" is unknown, the address is left alone"#))]
#[case::host_name(json!({"hostname": "lb.example.com"}), false, None)]
#[case::empty(json!({"ip": "", "hostname": "lb.example.com"}), false, None)]
#[case::syntax(json!({"ip": "192.0.2"}), false,
    Some(r#"load balancer ingress: "192.0.2" is not an IP address"#))]
#[case::multicast(json!({"ip": "ff02::1"}), false,
    Some("load balancer ingress: ff02::1 is a multicast address, which cannot be proxied"))]
fn reads_load_balancer_ingress(
    #[case] ingress: Value,
    #[case] answered: bool,
    #[case] problem: Option<&str>,
) {
    let parsed = parse_object(json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.10"},
        "status": {"loadBalancer": {"ingress": [ingress]}},
    }));
    let problems: Vec<_> = parsed.problems.iter().map(Problem::to_string).collect();
    assert_eq!(problems, problem.into_iter().collect::<Vec<_>>());
    let expected = if answered {
        ips(&["192.0.2.7"])
    } else {
        Vec::new()
    };
    assert_eq!(
        parsed.state.usable().expect("a Service").load_balancer_ips,
        expected
    );
}

/// S10, S12: the policy, and the port of the health check, if it is `Local`.
#[rstest]
#[case::load_balancer(json!({"type": "LoadBalancer", "healthCheckNodePort": 32000}),
    true, Some(32000), None)]
#[case::no_health_check(json!({"type": "LoadBalancer"}), true, None,
    Some("healthCheckNodePort 0 is not in 1-65535, no health check is answered"))]
#[case::bad_health_check(json!({"type": "LoadBalancer", "healthCheckNodePort": 65536}), true, None,
    Some("healthCheckNodePort 65536 is not in 1-65535, no health check is answered"))]
#[case::node_port(json!({"type": "NodePort", "healthCheckNodePort": 32000}), true, None, None)]
#[case::external_ip(json!({"externalIPs": ["192.0.2.7"]}), true, None, None)]
#[case::nothing_external(json!({"type": "ClusterIP", "healthCheckNodePort": 32000}),
    false, None, None)]
fn the_external_policy_counts_for(
    #[case] mut spec: Value,
    #[case] local: bool,
    #[case] health_check: Option<u16>,
    #[case] problem: Option<&str>,
) {
    spec["clusterIP"] = json!("10.0.0.10");
    spec["externalTrafficPolicy"] = json!("Local");
    let (service, problems) = service(spec.clone());
    assert_eq!(
        (service.external_local, service.health_check_port),
        (local, health_check)
    );
    assert_eq!(problems, problem.into_iter().collect::<Vec<_>>());

    spec["externalTrafficPolicy"] = json!("Cluster");
    let (service, problems) = self::service(spec);
    assert_eq!(
        (service.external_local, service.health_check_port),
        (false, None)
    );
    assert_eq!(problems, Vec::<String>::new());
}

/// A health check port counts for load balancers with a Local policy only (S12).
#[rstest]
#[case::asked("LoadBalancer", "Local", json!(32000), Some(32000))]
#[case::other_policy("LoadBalancer", "Cluster", json!(32000), None)]
#[case::other_type("NodePort", "Local", json!(32000), None)]
fn load_balancers_ask_where_the_policy_is_local(
    #[case] kind: &str,
    #[case] policy: &str,
    #[case] port: Value,
    #[case] expected: Option<u16>,
) {
    let (service, problems) = service(json!({
        "clusterIP": "10.0.0.10",
        "type": kind,
        "externalTrafficPolicy": policy,
        "healthCheckNodePort": port,
    }));
    assert_eq!((service.health_check_port, problems), (expected, vec![]));
}

/// A health check port counts for load balancers with a Local policy only (S12).
#[rstest]
#[case(json!({}), 0)]
#[case(json!({"healthCheckNodePort": 70000}), 70000)]
fn a_health_check_port_that_is_none_is_named(#[case] fields: Value, #[case] port: i32) {
    let mut spec = json!({
        "clusterIP": "10.0.0.10",
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
    });
    spec.as_object_mut()
        .expect("an object")
        .extend(fields.as_object().expect("an object").clone());
    let (service, problems) = service(spec);
    assert_eq!(service.health_check_port, None);
    let problem =
        format!("healthCheckNodePort {port} is not in 1-65535, no health check is answered");
    assert_eq!(problems, [problem]);
}
