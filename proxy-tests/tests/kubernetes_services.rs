//! What the API server and its controllers say about a Service takes effect,
//! and takes effect again when it is taken back.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use proxy_tests::kubernetes::{ApiPod, ContainerPort, Namespace, Probe, Protocol, shared};
use proxy_tests::{ECHO_PORT, Family, Host, Topology, eventually};
use serde_json::json;

const DUAL: &str = "ipFamilyPolicy: RequireDualStack";
const LIMIT: Duration = Duration::from_secs(15);

/// Probes of the Service `echo`, one for each family.
fn echo<'lab>(namespace: &Namespace<'_>, client: &'lab Host) -> Result<[Probe<'lab>; 2]> {
    let service = namespace.service("echo")?;
    Ok([
        Probe::new(client, service.at(Family::V4, ECHO_PORT)?),
        Probe::new(client, service.at(Family::V6, ECHO_PORT)?),
    ])
}

/// The Service that leads to the API server itself.
#[test]
fn the_api_server_is_reached_at_its_cluster_ip() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("api-server")?;
    let client = namespace.client(1, "client")?;
    let kubernetes = cluster
        .kubectl()
        .get(&["--namespace", "default", "service", "kubernetes"])?;
    let address = kubernetes["spec"]["clusterIP"].as_str().context("no IP")?;
    let target = (address.parse::<std::net::IpAddr>()?, 443).into();
    eventually("TCP to the API server", LIMIT, || {
        client.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(500)))?;
        Ok(())
    })
}

/// The label hands a Service to another proxy at once, whatever its value.
#[test]
fn another_proxys_services_are_left_to_it() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("proxy-name")?;
    let client = namespace.client(0, "client")?;
    let [backend] = namespace.backends([(1, "backend")])?;
    namespace.apply_echo("echo", DUAL)?;
    let probes = echo(&namespace, &client)?;
    for value in ["another", ""] {
        for probe in &probes {
            probe.reaches(&[&backend])?;
        }
        let label = format!("service.kubernetes.io/service-proxy-name={value}");
        namespace.kubectl(&["label", "service", "echo", &label])?;
        for probe in &probes {
            probe.reaches_nobody()?;
        }
        let removal = "service.kubernetes.io/service-proxy-name-";
        namespace.kubectl(&["label", "service", "echo", removal])?;
    }
    for probe in &probes {
        probe.reaches(&[&backend])?;
    }
    Ok(())
}

/// A Service becomes a DNS alias and a Service again.
#[test]
fn a_type_of_external_name_is_not_proxied() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("external-name")?;
    let client = namespace.client(0, "client")?;
    let [backend] = namespace.backends([(0, "backend")])?;
    namespace.apply_echo("echo", DUAL)?;
    let before = echo(&namespace, &client)?;
    for probe in &before {
        probe.reaches(&[&backend])?;
    }
    namespace.patch(
        "service/echo",
        &json!({ "spec": { "type": "ExternalName", "externalName": "example.com" } }),
    )?;
    for probe in &before {
        probe.reaches_nobody()?;
    }
    namespace.patch(
        "service/echo",
        &json!({ "spec": {
            "type": "ClusterIP", "externalName": null, "ipFamilyPolicy": "RequireDualStack",
        } }),
    )?;
    for probe in &echo(&namespace, &client)? {
        probe.reaches(&[&backend])?;
    }
    Ok(())
}

/// `internalTrafficPolicy: Local` keeps clients on their own node, and leaves
/// those of a node without endpoint alone.
#[test]
fn local_traffic_stays_on_the_node() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("local")?;
    let [here, there] = [namespace.client(0, "here")?, namespace.client(1, "there")?];
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo("echo", DUAL)?;
    let policy = |policy: &str| {
        let patch = json!({ "spec": { "internalTrafficPolicy": policy } });
        namespace.patch("service/echo", &patch)
    };
    for _ in 0..2 {
        for client in [&here, &there] {
            for probe in echo(&namespace, client)? {
                probe.reaches(&[&local, &remote])?;
            }
        }
        policy("Local")?;
        for (client, backend) in [(&here, &local), (&there, &remote)] {
            for probe in echo(&namespace, client)? {
                probe.reaches(&[backend])?;
            }
        }
        policy("Cluster")?;
    }
    policy("Local")?;
    local.set_ready(false)?;
    for probe in echo(&namespace, &here)? {
        probe.reaches_nobody()?;
    }
    for probe in echo(&namespace, &there)? {
        probe.reaches(&[&remote])?;
    }
    Ok(())
}

/// `publishNotReadyAddresses` makes the controller call every pod ready.
#[test]
fn pods_that_are_not_ready_serve_where_asked_to() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("not-ready")?;
    let client = namespace.client(0, "client")?;
    let [backend] = namespace.backends([(1, "backend")])?;
    backend.set_ready(false)?;
    namespace.apply_echo("echo", DUAL)?;
    let publish = |publish: bool| {
        let patch = json!({ "spec": { "publishNotReadyAddresses": publish } });
        namespace.patch("service/echo", &patch)
    };
    let probes = echo(&namespace, &client)?;
    for _ in 0..2 {
        for probe in &probes {
            probe.is_refused()?;
        }
        publish(true)?;
        for probe in &probes {
            probe.reaches(&[&backend])?;
        }
        publish(false)?;
    }
    Ok(())
}

/// Backends come and go with their readiness; without any, clients are told so.
#[test]
fn readiness_decides_who_serves() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("readiness")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo("echo", DUAL)?;
    let probes = echo(&namespace, &client)?;
    let served_by = |servers: &[&Host]| {
        probes.iter().try_for_each(|probe| match servers {
            [] => probe.is_refused(),
            _ => probe.reaches(servers),
        })
    };
    served_by(&[&local, &remote])?;
    for _ in 0..2 {
        local.set_ready(false)?;
        served_by(&[&remote])?;
        remote.set_ready(false)?;
        served_by(&[])?;
        local.set_ready(true)?;
        served_by(&[&local])?;
        remote.set_ready(true)?;
        served_by(&[&local, &remote])?;
    }
    Ok(())
}

/// A named port is another number in each pod: the controller makes a slice
/// for each number.
#[test]
fn a_named_port_differs_from_pod_to_pod() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("named-port")?;
    let client = namespace.client(0, "client")?;
    let named = |port| {
        [("web", "TCP"), ("dns", "UDP")].map(|(name, protocol)| ContainerPort {
            name: name.to_owned(),
            port,
            protocol,
        })
    };
    let start =
        |node, name, port| ApiPod::start(&namespace, node, name, "named", port, &named(port));
    let backends = [start(0, "low", 1234)?, start(1, "high", 54321)?];
    namespace.register(backends.iter())?;
    for backend in &backends {
        backend.set_ready(true)?;
    }
    namespace.apply(
        "
apiVersion: v1
kind: Service
metadata: { name: echo }
spec:
  ipFamilyPolicy: RequireDualStack
  selector: { app: named }
  ports:
  - { name: tcp, port: 80, protocol: TCP, targetPort: web }
  - { name: udp, port: 80, protocol: UDP, targetPort: dns }
",
    )?;
    let [low, high] = &backends;
    for probe in echo(&namespace, &client)? {
        probe.reaches(&[low, high])?;
    }
    Ok(())
}

/// One port number, two protocols, two sets of backends (in slices by hand:
/// one selector has one set).
#[test]
fn protocols_on_one_port_are_told_apart() -> Result<()> {
    let cluster = shared(Topology::FLANNEL)?;
    let namespace = cluster.namespace("protocols")?;
    let client = namespace.client(0, "client")?;
    let tcp = ApiPod::start(&namespace, 0, "tcp", "echo", 1111, &[])?;
    let udp = ApiPod::start(&namespace, 1, "udp", "echo", 2222, &[])?;
    namespace.register([&tcp, &udp].into_iter())?;
    for backend in [&tcp, &udp] {
        backend.set_ready(true)?;
    }
    namespace.apply(
        "
apiVersion: v1
kind: Service
metadata: { name: echo }
spec:
  ipFamilyPolicy: RequireDualStack
  ports:
  - { name: tcp, port: 80, protocol: TCP }
  - { name: udp, port: 80, protocol: UDP }
",
    )?;
    for family in Family::BOTH {
        for (name, backend, port) in [("tcp", &tcp, 1111), ("udp", &udp, 2222)] {
            namespace.apply(&format!(
                "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{}
  labels: {{ kubernetes.io/service-name: echo }}
addressType: {family}
endpoints:
- addresses: ['{}']
ports:
- {{ name: {name}, port: {port}, protocol: {} }}
",
                family.api_name().to_lowercase(),
                backend.address(family),
                name.to_uppercase(),
            ))?;
        }
    }
    for probe in echo(&namespace, &client)? {
        probe.reaches_over(Protocol::Tcp, &[&tcp])?;
        probe.reaches_over(Protocol::Udp, &[&udp])?;
    }
    // One of the two goes, the other stays.
    namespace.kubectl(&[
        "patch",
        "service",
        "echo",
        "--type=json",
        "--patch",
        r#"[{ "op": "remove", "path": "/spec/ports/0" }]"#,
    ])?;
    for probe in echo(&namespace, &client)? {
        probe.reaches_nobody_over(Protocol::Tcp)?;
        probe.reaches_over(Protocol::Udp, &[&udp])?;
    }
    Ok(())
}
