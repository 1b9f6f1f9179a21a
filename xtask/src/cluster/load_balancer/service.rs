//! What a Service wants of the load balancer, and what is still to be done.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use super::free;
use crate::cluster::spec::Family;

/// Keeps a Service until its address is free.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Nodes with this label get no traffic of load balancers.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What is read of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) version: String,
    /// Whether it is to have an address. Those with a class are another's.
    pub(super) wanted: bool,
    /// Whether it is another load balancer's.
    foreign: bool,
    finalizers: Vec<String>,
    families: Vec<Family>,
    /// Those in its status.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) health_check_port: Option<u16>,
    /// Whether each client is to stay with one endpoint.
    pub(super) affinity: bool,
}

/// A change of the object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Step {
    Finalizers(Vec<String>),
    Addresses(Vec<IpAddr>),
}

impl Service {
    pub(super) fn read(object: &Value) -> Self {
        let (metadata, spec) = (&object["metadata"], &object["spec"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let foreign = spec["loadBalancerClass"].is_string();
        let local = spec["externalTrafficPolicy"] == "Local";
        let port = spec["healthCheckNodePort"].as_u64();
        Self {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            version: text(&metadata["resourceVersion"]),
            wanted: spec["type"] == "LoadBalancer"
                && !foreign
                && metadata["deletionTimestamp"].is_null(),
            foreign,
            finalizers: list(&metadata["finalizers"]).map(text).collect(),
            families: list(&spec["ipFamilies"]).filter_map(family).collect(),
            addresses: list(&object["status"]["loadBalancer"]["ingress"])
                .filter_map(|ingress| ingress["ip"].as_str()?.parse().ok())
                .collect(),
            health_check_port: port.filter(|_| local).and_then(|port| port.try_into().ok()),
            affinity: spec["sessionAffinity"] == "ClientIP",
        }
    }

    /// The addresses that it is to have: those that it has, as far as its families
    /// are those, and free ones.
    pub(super) fn assign(&self, taken: &mut BTreeSet<IpAddr>) -> Vec<IpAddr> {
        if !self.wanted {
            return Vec::new();
        }
        let of = |family: Family| {
            self.addresses
                .iter()
                .copied()
                .find(|address| Family::of(*address) == family)
        };
        let addresses: Vec<_> = self
            .families
            .iter()
            .filter_map(|family| of(*family).or_else(|| free(*family, taken)))
            .collect();
        taken.extend(&addresses);
        addresses
    }

    /// Returns the next change that the object needs to have these addresses.
    pub(super) fn next_step(&self, assigned: &[IpAddr]) -> Option<Step> {
        let held = self.finalizers.iter().any(|other| other == FINALIZER);
        if self.foreign && !held {
            return None;
        }
        if self.wanted && !held {
            let mut finalizers = self.finalizers.clone();
            finalizers.push(FINALIZER.to_owned());
            return Some(Step::Finalizers(finalizers));
        }
        if self.addresses != assigned && (self.wanted || held) {
            return Some(Step::Addresses(assigned.to_vec()));
        }
        (held && !self.wanted).then(|| {
            let others = self.finalizers.iter().filter(|other| *other != FINALIZER);
            Step::Finalizers(others.cloned().collect())
        })
    }
}

/// Whether load balancers send traffic to a node.
pub(super) fn takes_traffic(node: &Value) -> bool {
    node["metadata"]["labels"][EXCLUDED].is_null()
        && list(&node["status"]["conditions"])
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn family(value: &Value) -> Option<Family> {
    match value.as_str()? {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    const OTHER: &str = "example.com/other";

    fn object() -> Value {
        json!({
            "metadata": {"namespace": "a", "name": "b", "finalizers": [OTHER]},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv6", "IPv4"]},
        })
    }

    /// All steps, each of which is done.
    fn steps(object: &mut Value) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut taken = ["172.28.0.1".parse().unwrap()].into();
        let assigned = Service::read(object).assign(&mut taken);
        while let Some(step) = Service::read(object).next_step(&assigned) {
            match &step {
                Step::Finalizers(finalizers) => {
                    object["metadata"]["finalizers"] = json!(finalizers);
                }
                Step::Addresses(addresses) => {
                    let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
                    object["status"]["loadBalancer"]["ingress"] = json!(ingress);
                }
            }
            steps.push(step);
        }
        steps
    }

    fn finalizers(names: &[&str]) -> Step {
        Step::Finalizers(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn given(addresses: &[&str]) -> Step {
        Step::Addresses(addresses.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_service_is_held_before_it_gets_free_addresses() {
        let mut object = object();
        let expected = [
            finalizers(&[OTHER, FINALIZER]),
            given(&["fd00:28::1", "172.28.0.2"]),
        ];
        assert_eq!(steps(&mut object), expected);
    }

    #[rstest]
    #[case::another_type("/spec/type", json!("ClusterIP"))]
    #[case::deletion("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"))]
    fn a_service_is_let_go_without_addresses(#[case] field: &str, #[case] value: Value) {
        let mut object = object();
        object["metadata"]["deletionTimestamp"] = Value::Null;
        steps(&mut object);
        *object.pointer_mut(field).unwrap() = value;
        assert_eq!(steps(&mut object), [given(&[]), finalizers(&[OTHER])]);
    }

    #[test]
    fn a_family_that_goes_takes_its_address_along() {
        let mut object = object();
        steps(&mut object);
        object["spec"]["ipFamilies"] = json!(["IPv6"]);
        assert_eq!(steps(&mut object), [given(&["fd00:28::1"])]);
    }

    #[test]
    fn services_with_a_class_are_another_load_balancers() {
        let mut object = object();
        object["spec"]["loadBalancerClass"] = "example.com/lb".into();
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.1"}]);
        assert_eq!(steps(&mut object), []);
    }

    #[rstest]
    #[case("Local", Some(31000))]
    #[case("Cluster", None)]
    fn nodes_are_asked_where_their_own_endpoints_count(
        #[case] policy: &str,
        #[case] expected: Option<u16>,
    ) {
        let mut object = object();
        object["spec"]["externalTrafficPolicy"] = policy.into();
        object["spec"]["healthCheckNodePort"] = 31000.into();
        assert_eq!(Service::read(&object).health_check_port, expected);
    }
}
