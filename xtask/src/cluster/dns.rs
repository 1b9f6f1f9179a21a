//! The cluster's DNS server, behind a Service with an address of each family.

use serde_json::{Value, json};

use super::{addresses, images::COREDNS_IMAGE, spec::Spec};

/// Names of the cluster are answered by its Services, and no others are there.
const COREFILE: &str = "\
cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
  errors
  health
  ready
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    pods insecure
    ttl 5
  }
  cache 5
  loadbalance
}
.:53 {
  template ANY ANY {
    rcode NXDOMAIN
  }
}
";

pub(crate) fn objects(spec: &Spec) -> Vec<Value> {
    let labels = json!({"k8s-app": "kube-dns"});
    let replicas = spec.nodes.len().min(2);
    let cluster_ips: Vec<_> = spec.services.list().map(addresses::dns).collect();
    let metadata = |name: &str| json!({"name": name, "namespace": "kube-system", "labels": labels});
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"});
    let mut service = metadata("kube-dns");
    service["labels"]["kubernetes.io/cluster-service"] = "true".into();
    service["labels"]["kubernetes.io/name"] = "CoreDNS".into();
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("coredns")}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "coredns"},
            "rules": [
                rule("", &["services", "pods", "namespaces"]),
                rule("discovery.k8s.io", &["endpointslices"]),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata("coredns"),
            "data": {"Corefile": COREFILE},
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata("coredns"),
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod(&labels)},
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": service,
            "spec": {
                "selector": labels,
                "ipFamilyPolicy": "PreferDualStack",
                "clusterIP": cluster_ips[0],
                "clusterIPs": cluster_ips,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        }),
    ]
}

fn rule(group: &str, resources: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]})
}

fn pod(labels: &Value) -> Value {
    json!({
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        }],
        "containers": [{
            "name": "coredns",
            "image": COREDNS_IMAGE,
            "args": ["-conf", "/etc/coredns/Corefile"],
            "ports": [
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
            ],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 3},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        }],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cluster::spec::{Cni, Proxy};

    #[rstest]
    #[case("ipv4", json!(["10.96.0.10"]))]
    #[case("ipv6,ipv4", json!(["fd00:10:96::a", "10.96.0.10"]))]
    fn dns_has_an_address_of_each_family(#[case] families: &str, #[case] expected: Value) {
        let spec = Spec::new(1, families.parse().unwrap(), Cni::Ptp, Proxy::Tandem, &[]).unwrap();
        let objects = objects(&spec);
        let service = objects
            .iter()
            .find(|object| object["kind"] == "Service")
            .unwrap();
        assert_eq!(service["spec"]["clusterIPs"], expected);
    }
}
