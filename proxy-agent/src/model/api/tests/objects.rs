//! A complete object of every kind, and which fields of it are read.

use serde_json::{Value, json};

use crate::model::{EndpointSlice, Node, Object, Service, ServiceCidr};

/// A kind with an object that has every field there is.
pub(super) trait Complete: Object {
    /// The object.
    fn complete() -> Value;
    /// The fields that make a difference, with what holds them, as patterns.
    const USED: &[&str];
    /// Those of which a value that cannot be read is no problem.
    const QUIET: &[&str] = &[];
    /// Those that leave the object as it was known if they cannot be read.
    const FATAL: &[&str];
}

fn metadata(labels: &Value, annotations: &Value) -> Value {
    json!({
        "name": "complete",
        "namespace": "default",
        "generateName": "comp",
        "uid": "6a4ac2a5-8f10-4bd6-8bd4-4ab7d8a2b5d4",
        "resourceVersion": "4711",
        "generation": 3,
        "creationTimestamp": "2026-08-01T10:00:00Z",
        "deletionTimestamp": "2026-08-01T10:00:00Z",
        "deletionGracePeriodSeconds": 30,
        "selfLink": "/api/v1/x",
        "labels": labels,
        "annotations": annotations,
        "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "1",
            "controller": true, "blockOwnerDeletion": true}],
        "managedFields": [{"apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kubectl",
            "operation": "Update", "subresource": "status", "time": "2026-08-01T10:00:00Z",
            "fieldsV1": {"f:spec": {"f:ports": {".": {}, "k:{\"port\":80}": {"f:port": {}}}}}}],
    })
}

fn conditions() -> Value {
    json!([{"type": "Ready", "status": "True", "reason": "Because", "message": "",
        "observedGeneration": 1, "lastTransitionTime": "2026-08-01T10:00:00Z",
        "lastHeartbeatTime": "2026-08-01T10:00:00Z"}])
}

impl Complete for Service {
    fn complete() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(&json!({"app": "web"}), &json!({"note": "x"})),
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10", "fd00:96::a"],
                "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [
                    {"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080,
                        "targetPort": "web", "appProtocol": "http"},
                    {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053,
                        "targetPort": 53},
                ],
                "selector": {"app": "web"},
                "externalIPs": ["203.0.113.250", "2001:db8::250"],
                "externalName": "example.com",
                "loadBalancerIP": "198.51.100.7",
                "loadBalancerClass": "example.com/lb",
                "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
                "internalTrafficPolicy": "Local",
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 32000,
                "publishNotReadyAddresses": true,
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90}},
                "allocateLoadBalancerNodePorts": true,
                "trafficDistribution": "PreferSameZone",
            },
            "status": {
                "loadBalancer": {"ingress": [
                    {"ip": "198.51.100.7", "ipMode": "VIP", "hostname": "lb.example.com",
                        "ports": [{"port": 80, "protocol": "TCP", "error": "x"}]},
                    {"ip": "2001:db8::7", "ipMode": "VIP"},
                ]},
                "conditions": conditions(),
            },
        })
    }

    const USED: &[&str] = &[
        ".metadata",
        ".metadata.name",
        ".metadata.namespace",
        ".metadata.labels",
        ".spec",
        ".spec.type",
        ".spec.clusterIP",
        ".spec.clusterIPs",
        ".spec.clusterIPs[]",
        ".spec.ipFamilies",
        ".spec.ipFamilies[]",
        ".spec.ports",
        ".spec.ports[]",
        ".spec.ports[].name",
        ".spec.ports[].protocol",
        ".spec.ports[].port",
        ".spec.ports[].nodePort",
        ".spec.externalIPs",
        ".spec.externalIPs[]",
        ".spec.loadBalancerSourceRanges",
        ".spec.loadBalancerSourceRanges[]",
        ".spec.internalTrafficPolicy",
        ".spec.externalTrafficPolicy",
        ".spec.healthCheckNodePort",
        ".spec.sessionAffinity",
        ".spec.sessionAffinityConfig",
        ".spec.sessionAffinityConfig.clientIP",
        ".spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ".status",
        ".status.loadBalancer",
        ".status.loadBalancer.ingress",
        ".status.loadBalancer.ingress[]",
        ".status.loadBalancer.ingress[].ip",
        ".status.loadBalancer.ingress[].ipMode",
    ];
    const FATAL: &[&str] = &[
        ".metadata",
        ".metadata.name",
        ".metadata.namespace",
        ".metadata.labels",
        ".spec",
        ".spec.type",
        ".spec.clusterIP",
        ".spec.clusterIPs",
        ".spec.ipFamilies",
        ".spec.ports",
        ".spec.internalTrafficPolicy",
        ".spec.externalTrafficPolicy",
        ".spec.sessionAffinity",
    ];
}

impl Complete for EndpointSlice {
    fn complete() -> Value {
        let endpoint = |ip: &str, node: &str| {
            json!({
                "addresses": [ip],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "hostname": "web-0",
                "nodeName": node,
                "zone": "zone-a",
                "hints": {"forZones": [{"name": "zone-a"}], "forNodes": [{"name": node}]},
                "deprecatedTopology": {"a": "b"},
                "targetRef": {"apiVersion": "v1", "kind": "Pod", "namespace": "default",
                    "name": "web-0", "uid": "1", "resourceVersion": "1", "fieldPath": "x"},
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata(
                &json!({
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                }),
                &json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-08-01T10:00:00Z"}),
            ),
            "addressType": "IPv6",
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 8080, "appProtocol": "http"},
                {"name": "dns", "protocol": "UDP", "port": 53},
            ],
            "endpoints": [endpoint("fd00::1", "node-1"), endpoint("fd00::2", "node-2")],
        })
    }

    const USED: &[&str] = &[
        ".metadata",
        ".metadata.name",
        ".metadata.namespace",
        ".metadata.labels",
        ".metadata.labels.kubernetes.io/service-name",
        ".metadata.annotations",
        ".metadata.annotations.endpoints.kubernetes.io/last-change-trigger-time",
        ".addressType",
        ".ports",
        ".ports[]",
        ".ports[].name",
        ".ports[].protocol",
        ".ports[].port",
        ".endpoints",
        ".endpoints[]",
        ".endpoints[].addresses",
        ".endpoints[].addresses[]",
        ".endpoints[].conditions",
        ".endpoints[].conditions.ready",
        ".endpoints[].conditions.serving",
        ".endpoints[].conditions.terminating",
        ".endpoints[].nodeName",
        ".endpoints[].hints",
        ".endpoints[].hints.forZones",
        ".endpoints[].hints.forZones[]",
        ".endpoints[].hints.forZones[].name",
        ".endpoints[].hints.forNodes",
        ".endpoints[].hints.forNodes[]",
        ".endpoints[].hints.forNodes[].name",
    ];
    const QUIET: &[&str] = &[
        ".metadata.annotations",
        ".metadata.annotations.endpoints.kubernetes.io/last-change-trigger-time",
    ];
    const FATAL: &[&str] = &[
        ".metadata",
        ".metadata.name",
        ".metadata.namespace",
        ".metadata.labels",
        ".metadata.labels.kubernetes.io/service-name",
        ".addressType",
        ".ports",
        ".endpoints",
    ];
}

impl Complete for Node {
    fn complete() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": metadata(
                &json!({"topology.kubernetes.io/zone": "zone-a", "kubernetes.io/os": "linux"}),
                &json!({"node.alpha.kubernetes.io/ttl": "0"}),
            ),
            "spec": {
                "podCIDR": "10.1.0.0/24",
                "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"],
                "providerID": "x://y",
                "unschedulable": true,
                "externalID": "x",
                "taints": [{"key": "a", "value": "b", "effect": "NoSchedule",
                    "timeAdded": "2026-08-01T10:00:00Z"}],
                "configSource": {"configMap": {"name": "x", "namespace": "y", "kubeletConfigKey": "z"}},
            },
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": "172.16.0.1"},
                    {"type": "InternalIP", "address": "2001:db8::1"},
                ],
                "allocatable": {"cpu": "2"},
                "capacity": {"cpu": "2", "memory": "8Gi"},
                "conditions": conditions(),
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "images": [{"names": ["a", "b"], "sizeBytes": 7}],
                "nodeInfo": {"architecture": "amd64", "swap": {"capacity": 7}},
                "phase": "Running",
                "runtimeHandlers": [{"name": "x", "features": {"userNamespaces": true}}],
                "volumesAttached": [{"name": "x", "devicePath": "y"}],
                "volumesInUse": ["x"],
            },
        })
    }

    const USED: &[&str] = &[
        ".metadata",
        ".metadata.name",
        ".metadata.deletionTimestamp",
        ".metadata.labels",
        ".metadata.labels.topology.kubernetes.io/zone",
        ".spec",
        ".spec.podCIDRs",
        ".spec.podCIDRs[]",
        ".spec.taints",
        ".spec.taints[]",
        ".spec.taints[].key",
        ".status",
        ".status.addresses",
        ".status.addresses[]",
        ".status.addresses[].type",
        ".status.addresses[].address",
    ];
    // Whatever it is, the object is being deleted.
    const QUIET: &[&str] = &[".metadata.deletionTimestamp"];
    const FATAL: &[&str] = &[
        ".metadata",
        ".metadata.name",
        ".spec",
        ".spec.podCIDRs",
        ".status",
        ".status.addresses",
    ];
}

impl Complete for ServiceCidr {
    fn complete() -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": metadata(&json!({"a": "b"}), &json!({"a": "b"})),
            "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]},
            "status": {"conditions": conditions()},
        })
    }

    const USED: &[&str] = &[
        ".metadata",
        ".metadata.name",
        ".spec",
        ".spec.cidrs",
        ".spec.cidrs[]",
    ];
    const FATAL: &[&str] = &[".metadata", ".metadata.name", ".spec", ".spec.cidrs"];
}
