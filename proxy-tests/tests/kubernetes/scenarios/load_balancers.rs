//! A load balancer's addresses come by the status, as a cloud provider writes
//! it; source ranges and health check ports by the spec.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use proxy_tests::{
    ECHO_PORT, Family, Host, eventually,
    kubernetes::{ApiPod, Namespace, Probe, Protocol, shared},
};
use serde_json::json;

use super::{LIMIT, cluster_ips, reach};

const LOAD_BALANCER: &str = "ipFamilyPolicy: RequireDualStack, type: LoadBalancer";

/// The addresses of load balancer `number`.
fn addresses(number: u8) -> [IpAddr; 2] {
    [
        [203, 0, 113, number].into(),
        [0x2001, 0xdb8, 0x203, 0, 0, 0, 0, u16::from(number)].into(),
    ]
}

/// From the host outside to a load balancer's addresses, by way of the first
/// node.
fn from_outside<'lab>(
    namespace: &Namespace<'lab>,
    addresses: [IpAddr; 2],
) -> Result<[Probe<'lab>; 2]> {
    let lab = namespace.lab();
    let (node, external) = (&lab.nodes[0], &lab.external);
    for address in addresses {
        let gateway = node.address(Family::of(address));
        external.ip(&format!("route replace {address} via {gateway}"))?;
    }
    Ok(
        addresses
            .map(|address| Probe::through(node, external, SocketAddr::new(address, ECHO_PORT))),
    )
}

fn from_pod(client: &Host, addresses: [IpAddr; 2]) -> [Probe<'_>; 2] {
    addresses.map(|address| Probe::new(client, SocketAddr::new(address, ECHO_PORT)))
}

/// S8: what the status says is in force, whatever the type says; `ipMode:
/// Proxy` leaves traffic to the load balancer.
#[test]
fn the_status_says_where_load_balancers_lead() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("ingress")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let both: [&Host; 2] = [&local, &remote];
    namespace.apply_echo("echo", LOAD_BALANCER)?;
    reach(&cluster_ips(&namespace, "echo", &client)?, &both)?;

    let [first, second] = [addresses(1), addresses(2)];
    let ingress = |addresses: [IpAddr; 2], mode: &str| {
        namespace.set_ingress("echo", &addresses.map(|address| (address, mode)))
    };
    let doors = |addresses| -> Result<Vec<Probe<'_>>> {
        let outside = from_outside(&namespace, addresses)?;
        Ok([outside, from_pod(&client, addresses)].concat())
    };
    let (first_doors, second_doors) = (doors(first)?, doors(second)?);
    let nobody = |doors: &[Probe<'_>]| doors.iter().try_for_each(Probe::reaches_nobody);

    nobody(&first_doors)?;
    ingress(first, "VIP")?;
    reach(&first_doors, &both)?;
    ingress(first, "Proxy")?;
    nobody(&first_doors)?;
    ingress(second, "VIP")?;
    reach(&second_doors, &both)?;
    nobody(&first_doors)?;
    namespace.set_ingress("echo", &[(first[0], "VIP"), (second[1], "VIP")])?;
    for index in [0, 2] {
        reach(&[first_doors[index], second_doors[index + 1]], &both)?;
        nobody(&[first_doors[index + 1], second_doors[index]])?;
    }
    namespace.set_ingress("echo", &[])?;
    nobody(&[first_doors, second_doors].concat())
}

/// S57, S58: ranges keep others from the load balancer's addresses, also pods,
/// and from nothing else; a family without a range of its own is open (S9).
#[test]
fn source_ranges_say_who_may_come() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("ranges")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let both: [&Host; 2] = [&local, &remote];
    namespace.apply_echo("echo", LOAD_BALANCER)?;
    let addresses = addresses(3);
    namespace.set_ingress("echo", &addresses.map(|address| (address, "VIP")))?;
    let outside = from_outside(&namespace, addresses)?;
    let inside = from_pod(&client, addresses);
    let node_port = namespace.service("echo")?.node_port()?;
    let open = [
        cluster_ips(&namespace, "echo", &client)?,
        super::node_ports(&namespace, &client, node_port),
        super::from_outside(&namespace, 0, node_port),
    ];
    let restrict = |ranges: &[String]| {
        let patch = json!({ "spec": { "loadBalancerSourceRanges": ranges } });
        namespace.patch("service/echo", &patch)
    };
    let only = |host: &Host, family| {
        let length = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        format!("{}/{length}", host.address(family))
    };
    let ignored = |doors: &[Probe<'_>]| doors.iter().try_for_each(Probe::is_ignored);

    reach(&outside, &both)?;
    reach(&inside, &both)?;
    for (admitted, others, host) in [
        (&outside, &inside, &cluster.lab().external),
        (&inside, &outside, &*client),
    ] {
        restrict(&Family::BOTH.map(|family| only(host, family)))?;
        reach(admitted, &both)?;
        ignored(others)?;
        reach(open.as_flattened(), &both)?;
    }
    restrict(&[only(&client, Family::V4)])?;
    reach(&[inside[0], inside[1], outside[1]], &both)?;
    ignored(&outside[..1])?;
    restrict(&[])?;
    reach(&outside, &both)?;
    reach(&inside, &both)
}

/// S6: two Services share a load balancer's address and port, each with a
/// protocol of its own.
#[test]
fn services_share_an_address() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("shared-address")?;
    let client = namespace.client(1, "client")?;
    let addresses = addresses(4);
    let mut pods = Vec::new();
    for (node, name) in [(0, "tcp"), (1, "udp")] {
        let pod = ApiPod::start(&namespace, node, name, name, 8080, &[])?;
        namespace.register([&pod].into_iter())?;
        pod.set_ready(true)?;
        pods.push(pod);
        namespace.apply(&format!(
            "
apiVersion: v1
kind: Service
metadata: {{ name: {name} }}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  ipFamilyPolicy: RequireDualStack
  selector: {{ app: {name} }}
  ports:
  - {{ port: {ECHO_PORT}, protocol: {}, targetPort: 8080 }}
",
            name.to_uppercase()
        ))?;
        namespace.set_ingress(name, &addresses.map(|address| (address, "VIP")))?;
    }
    let doors = [
        from_outside(&namespace, addresses)?,
        from_pod(&client, addresses),
    ];
    for door in doors.as_flattened() {
        door.reaches_over(Protocol::Tcp, &[&pods[0]])?;
        door.reaches_over(Protocol::Udp, &[&pods[1]])?;
    }
    namespace.kubectl(&["delete", "service", "udp"])?;
    for door in doors.as_flattened() {
        door.reaches_over(Protocol::Tcp, &[&pods[0]])?;
        door.reaches_nobody_over(Protocol::Udp)?;
    }
    Ok(())
}

/// S62, S112: the port is open as long as the policy is `Local`, and tells
/// which nodes have endpoints that are ready.
#[test]
fn health_check_ports_follow_the_policy() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("health")?;
    let [local] = namespace.backends([(0, "local")])?;
    namespace.apply_echo("echo", LOAD_BALANCER)?;
    let addresses = addresses(5);
    namespace.set_ingress("echo", &addresses.map(|address| (address, "VIP")))?;
    let outside = from_outside(&namespace, addresses)?;
    let lab = cluster.lab();
    let policy = |policy: &str| {
        let patch = json!({ "spec": { "externalTrafficPolicy": policy } });
        namespace.patch("service/echo", &patch)
    };
    let say = |port: u16, statuses: [Option<u16>; 2]| -> Result<()> {
        for (node, status) in lab.nodes.iter().zip(statuses) {
            for family in Family::BOTH {
                expect_status(&lab.external, node.at(family, port), status)?;
            }
        }
        Ok(())
    };
    for _ in 0..2 {
        policy("Local")?;
        let port = namespace.service("echo")?.health_check_port()?;
        say(port, [Some(200), Some(503)])?;
        reach(&outside, &[&local])?;
        local.set_ready(false)?;
        say(port, [Some(503), Some(503)])?;
        local.set_ready(true)?;
        say(port, [Some(200), Some(503)])?;
        policy("Cluster")?;
        say(port, [None, None])?;
    }
    // The last resort of clients is no reason to send more of them.
    policy("Local")?;
    local.terminate()?;
    let port = namespace.service("echo")?.health_check_port()?;
    say(port, [Some(503), Some(503)])?;
    reach(&outside, &[&local])
}

/// The answer to an HTTP request has this status, or nobody listens.
fn expect_status(client: &Host, server: SocketAddr, expected: Option<u16>) -> Result<()> {
    eventually(&format!("{server} says {expected:?}"), LIMIT, || {
        match (client.run(|| status(server)), expected) {
            (Ok(found), Some(expected)) => ensure!(found == expected, "{found}"),
            (Ok(found), None) => bail!("{found}"),
            (Err(error), Some(_)) => return Err(error),
            (Err(error), None) => {
                let cause = error.downcast_ref::<std::io::Error>();
                let refused = std::io::ErrorKind::ConnectionRefused;
                ensure!(cause.is_some_and(|cause| cause.kind() == refused), error);
            }
        }
        Ok(())
    })
}

fn status(server: SocketAddr) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {server}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no HTTP")?;
    Ok(status.parse()?)
}
