//! Any JSON, and lists with bytes exchanged.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value, json};

use super::{ApiObject, objects::Complete};
use crate::model::{EndpointSlice, Node, Object, Service, ServiceCidr};

/// Any value, whose names are mostly those of fields.
fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(TEXTS).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    scalar.prop_recursive(6, 64, 6, |inner| {
        let name = prop_oneof![8 => select(NAMES).prop_map(String::from), 1 => ".{0,6}"];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((name, inner), 0..8).prop_map(|fields| Value::from(Map::from_iter(fields))),
        ]
    })
}

const TEXTS: &[&str] = &[
    "10.96.0.1",
    "fd00::1",
    "10.0.0.0/8",
    "IPv4",
    "IPv6",
    "TCP",
    "Local",
    "Cluster",
    "LoadBalancer",
    "ClientIP",
    "None",
    "InternalIP",
    "web",
];

const NAMES: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "spec",
    "status",
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ports",
    "port",
    "protocol",
    "nodePort",
    "externalIPs",
    "loadBalancerSourceRanges",
    "internalTrafficPolicy",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "sessionAffinity",
    "sessionAffinityConfig",
    "clientIP",
    "timeoutSeconds",
    "loadBalancer",
    "ingress",
    "ip",
    "ipMode",
    "addressType",
    "endpoints",
    "addresses",
    "address",
    "conditions",
    "ready",
    "serving",
    "terminating",
    "nodeName",
    "hints",
    "forZones",
    "forNodes",
    "podCIDR",
    "podCIDRs",
    "cidrs",
    "kubernetes.io/service-name",
    "service.kubernetes.io/headless",
    "service.kubernetes.io/service-proxy-name",
    "topology.kubernetes.io/zone",
];

/// From text and from a tree of values the same comes out.
fn reads<T: Object>(object: &Value) -> Result<(), TestCaseError> {
    let of_value: Result<ApiObject<T::Fields>, _> = serde_json::from_value(object.clone());
    let of_text: Result<ApiObject<T::Fields>, _> = serde_json::from_str(&object.to_string());
    let (Ok(of_value), Ok(of_text)) = (of_value, of_text) else {
        return Err(TestCaseError::fail("not read"));
    };
    prop_assert_eq!(T::from_api(of_value), T::from_api(of_text));
    Ok(())
}

/// Text that is JSON is read, and nothing panics on other text.
fn reads_list<T: Object>(text: &[u8]) -> Result<(), TestCaseError> {
    let list: Result<Vec<ApiObject<T::Fields>>, _> = serde_json::from_slice(text);
    match list {
        Ok(list) => drop(list.into_iter().map(T::from_api).collect::<Vec<_>>()),
        Err(error) => {
            let is_list = serde_json::from_slice::<Vec<Value>>(text).is_ok();
            prop_assert!(!is_list, "{}", error);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_json_is_read(spec in value(), status in value(), whole in value(), more in value()) {
        let metadata = json!({"name": "x", "namespace": "y"});
        let named = json!({"metadata": metadata, "spec": spec, "status": status,
            "endpoints": whole, "ports": more, "addressType": "IPv4"});
        for object in [&named, &whole] {
            reads::<Service>(object)?;
            reads::<EndpointSlice>(object)?;
            reads::<Node>(object)?;
            reads::<ServiceCidr>(object)?;
        }
    }

    #[test]
    fn exchanged_bytes_fail_only_where_they_are_no_json(
        changes in vec((any::<prop::sample::Index>(), select(BYTES)), 1..6),
    ) {
        fn text<T: Complete>(changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
            let mut text = json!([T::complete(), T::complete()]).to_string().into_bytes();
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = *byte;
            }
            text
        }
        reads_list::<Service>(&text::<Service>(&changes))?;
        reads_list::<EndpointSlice>(&text::<EndpointSlice>(&changes))?;
        reads_list::<Node>(&text::<Node>(&changes))?;
        reads_list::<ServiceCidr>(&text::<ServiceCidr>(&changes))?;
    }
}

/// Bytes that mean something to JSON, and some that do not.
const BYTES: &[u8] = b"0123456789-+.eE\"\\/,:[]{} \ttrufalsn\0\x1b\x7f\xc3\xa4\xff";
