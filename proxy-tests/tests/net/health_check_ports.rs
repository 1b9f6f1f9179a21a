//! Health check ports: load balancers learn which nodes have endpoints (S12,
//! S62, S111–S113).

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use proxy_tests::{AgentOptions, Family, Host, Lab, Topology, eventually};
use rstest::rstest;
use serde_json::{Value, json};

const PORT: u16 = 32_100;
/// From a change of an object to its effect.
const SOON: Duration = Duration::from_secs(2);
/// A port that is taken is tried again every five seconds.
const RETRIED: Duration = Duration::from_secs(10);

/// A load balanced Service with a health check port.
fn service(port: u16, policy: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop" },
        "spec": {
            "type": "LoadBalancer",
            "externalTrafficPolicy": policy,
            "healthCheckNodePort": port,
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:10:96::a"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{ "name": "http", "port": 80, "nodePort": 30_080 }],
        },
    })
}

/// A slice of that many ready endpoints on this node, another that is
/// terminating, and one on another node.
fn slice(family: Family, ready: u8, node: &str) -> Value {
    let ip = |number: u8| match family {
        Family::V4 => format!("10.244.1.{number}"),
        Family::V6 => format!("fd00:10:244:1::{number}"),
    };
    let endpoint = |number: u8, ready: bool, node: &str| {
        json!({
            "addresses": [ip(number)],
            "conditions": { "ready": ready, "serving": true, "terminating": !ready },
            "nodeName": node,
        })
    };
    let mut endpoints: Vec<_> = (0..ready)
        .map(|number| endpoint(10 + number, true, node))
        .collect();
    endpoints.push(endpoint(100, false, node));
    endpoints.push(endpoint(101, true, "elsewhere"));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("web-{}", family.api_name().to_lowercase()),
            "namespace": "shop",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": family.api_name(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn write(lab: &Lab, service: Value, ready: [u8; 2]) -> Result<()> {
    let node = lab.nodes[0].name();
    let mut objects = vec![service];
    for (family, ready) in Family::BOTH.into_iter().zip(ready) {
        objects.push(slice(family, ready, node));
    }
    lab.manifests.write_objects("web", &objects)
}

/// Asks in an unusual way: any path and any method will do.
fn ask(client: &Host, server: SocketAddr) -> Result<String> {
    client.run(|| {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "PUT /any/path HTTP/1.1\r\nHost: lb\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

/// The answer has this status and counts so many endpoints.
fn expect(client: &Host, server: SocketAddr, status: u16, endpoints: u8) -> Result<()> {
    eventually("the answer", SOON, || {
        let answer = ask(client, server)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let head = head.to_lowercase();
        ensure!(head.starts_with(&format!("http/1.1 {status} ")), "{answer}");
        for line in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            &format!("x-load-balancing-endpoint-weight: {endpoints}"),
        ] {
            ensure!(head.lines().any(|each| each == line), "{line}: {answer}");
        }
        let expected = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t}},\n\
             \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": true\n}}"
        );
        ensure!(body == expected, "{answer}");
        Ok(())
    })
    .with_context(|| server.to_string())
}

fn expect_refused(client: &Host, server: SocketAddr) -> Result<()> {
    eventually("nobody listens", SOON, || match ask(client, server) {
        Ok(answer) => bail!("{server}: {answer}"),
        Err(error) => {
            let refused = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
            ensure!(refused, "{server}: {error:#}");
            Ok(())
        }
    })
}

/// The port says how many ready endpoints the node has, in each family, and is
/// there as long as the Service wants it.
#[test]
fn ports_follow_services_and_endpoints() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let client = &lab.external;
    write(&lab, service(PORT, "Local"), [2, 0])?;
    let mut agents = lab.start_agents(&AgentOptions::default())?;
    let [v4, v6] = Family::BOTH.map(|family| node.at(family, PORT));
    expect(client, v4, 200, 2)?;
    expect(client, v6, 503, 0)?;
    write(&lab, service(PORT, "Local"), [0, 1])?;
    expect(client, v4, 503, 0)?;
    expect(client, v6, 200, 1)?;

    // A health check port answers for the ready endpoints here (S62).
    write(&lab, service(PORT, "Cluster"), [1, 1])?;
    expect_refused(client, v4)?;
    expect_refused(client, v6)?;
    write(&lab, service(PORT, "Local"), [1, 1])?;
    expect(client, v4, 200, 1)?;
    expect(client, v6, 200, 1)?;

    write(&lab, service(PORT + 1, "Local"), [1, 1])?;
    for family in Family::BOTH {
        expect(client, node.at(family, PORT + 1), 200, 1)?;
        expect_refused(client, node.at(family, PORT))?;
    }
    lab.manifests.write_objects("web", &[])?;
    for family in Family::BOTH {
        expect_refused(client, node.at(family, PORT + 1))?;
    }
    agents.pop().context("the agent")?.terminate()?;
    Ok(())
}

/// Load balancers ask where NodePorts are served, also on an address that
/// comes later (S113).
#[rstest]
#[case::all("", true)]
#[case::some("198.51.100.0/24,2001:db8::/64", false)]
fn ports_are_where_node_ports_are(#[case] flag: &str, #[case] everywhere: bool) -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    write(&lab, service(PORT, "Local"), [1, 1])?;
    let options = AgentOptions::with(&["--nodeport-addresses", flag]);
    let _agents = lab.start_agents(&options)?;
    for family in Family::BOTH {
        let server = node.at(family, PORT);
        if everywhere {
            expect(&lab.external, server, 200, 1)?;
        } else {
            expect_refused(&lab.external, server)?;
        }
    }
    node.ip("addr add 198.51.100.7/24 dev eth0\naddr add 2001:db8::7/64 dev eth0 nodad")?;
    for address in ["198.51.100.7", "2001:db8::7"] {
        expect(node, SocketAddr::new(address.parse()?, PORT), 200, 1)?;
    }
    Ok(())
}

/// A port that another process has is named once, and taken when it is free;
/// the other family does not wait for it.
#[rstest]
fn taken_ports_are_tried_again(#[values(Family::V4, Family::V6)] family: Family) -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let server = node.at(family, PORT);
    let taken = node.run(|| TcpListener::bind(server))?;
    write(&lab, service(PORT, "Local"), [1, 1])?;
    let agents = lab.start_agents(&AgentOptions::default())?;
    let other = Family::BOTH.into_iter().find(|other| *other != family);
    let other = node.at(other.context("another family")?, PORT);
    expect(&lab.external, other, 200, 1)?;
    let lines = || {
        let log = agents[0].log();
        let lines = log.lines().filter(|line| {
            line.contains("cannot listen on the health check port") && line.contains("shop/web")
        });
        lines.count()
    };
    eventually("the log names the Service", SOON, || {
        ensure!(lines() == 1, "{}", agents[0].log());
        Ok(())
    })?;
    drop(taken);
    eventually("the port is taken", RETRIED, || {
        expect(&lab.external, server, 200, 1)
    })?;
    assert_eq!(lines(), 1);
    Ok(())
}

/// The host's firewall decides who may ask, and nothing is added to it (S61).
#[test]
fn the_firewall_is_left_alone() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    node.nft(&format!(
        "table inet guard {{\n\
         chain in {{\n\
         type filter hook input priority 0;\n\
         iifname eth0 tcp dport {PORT} drop\n\
         }}\n\
         }}"
    ))?;
    let rules = || node.exec("nft", &["list", "ruleset"]);
    let before = rules()?;
    write(&lab, service(PORT, "Local"), [1, 1])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for family in Family::BOTH {
        let server = node.at(family, PORT);
        expect(node, server, 200, 1)?;
        let answer = ask(&lab.external, server);
        ensure!(answer.is_err(), "{server}: {answer:?}");
    }
    assert_eq!(rules()?, before);
    node.nft("delete table inet guard")?;
    for family in Family::BOTH {
        expect(&lab.external, node.at(family, PORT), 200, 1)?;
    }
    Ok(())
}
