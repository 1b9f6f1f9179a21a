//! A Service nobody serves refuses at once; it never lets a client wait.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Host, Lab, Service, Topology, Wiring, eventually,
    traffic::{Server, ask_tcp, ask_udp},
};
use rstest::rstest;

const AT_ONCE: Duration = Duration::from_secs(1);
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};
const FIREWALL: Topology = Topology {
    drop_invalid: true,
    masquerade: true,
    ..BRIDGE
};

/// No endpoints (S43), only endpoints that are not ready (S45), a port the
/// Service does not have (S46): refused to pods, processes of the node and
/// clients outside.
#[rstest]
fn refused_at_once(
    #[values(Topology::ONE_NODE, BRIDGE, FIREWALL)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let served = Service::echo(lab.families()).endpoint(&backend);
    let empty = echo_like("empty", 2, &lab);
    let mut unready = proxy_tests::manifest::Endpoint::from(&backend);
    (unready.ready, unready.serving) = (false, false);
    let unready = echo_like("unready", 3, &lab).endpoint(unready);
    for service in [&served, &empty, &unready] {
        lab.manifests.write(service)?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for host in [&*client, &*lab.nodes[0], &lab.external] {
            host.run(|| ask_tcp(served.at(family, ECHO_PORT)))?;
            expect_refusal(host, empty.at(family, ECHO_PORT), "no endpoints");
            expect_refusal(host, unready.at(family, ECHO_PORT), "not ready");
            expect_refusal(host, served.at(family, 81), "unknown port");
            expect_refusal(host, empty.at(family, 81), "unknown port, no endpoints");
        }
    }
    Ok(())
}

/// A Service that loses its last endpoint refuses (S49), and serves again when
/// it gets one.
#[test]
fn refuses_while_endpoints_are_gone() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let [client, backend] = lab.nodes[0].add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
        lab.manifests.write(&service.clone().without_endpoints())?;
        eventually("refusal", AT_ONCE, || {
            match client.run(|| ask_tcp(frontend)) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => anyhow::bail!("{other:?}"),
            }
        })?;
        expect_refusal(&client, frontend, "endpoints gone");
        lab.manifests.write(&service)?;
        eventually("service", AT_ONCE, || Ok(client.run(|| ask_tcp(frontend))?))?;
    }
    Ok(())
}

fn echo_like(name: &str, number: u8, lab: &Lab) -> Service {
    Service::echo_as(name, number, lab.families())
}

#[track_caller]
fn expect_refusal(host: &Host, target: SocketAddr, why: &str) {
    for (protocol, ask) in [("TCP", tcp as fn(SocketAddr) -> _), ("UDP", udp)] {
        let start = Instant::now();
        let outcome = host.run(|| ask(target));
        let took = start.elapsed();
        let context = format!(
            "{why}: {} to {target} {protocol} after {took:?}",
            host.name()
        );
        assert_eq!(outcome, Some(ErrorKind::ConnectionRefused), "{context}");
        assert!(took < AT_ONCE, "{context}");
    }
}

fn tcp(target: SocketAddr) -> Option<ErrorKind> {
    ask_tcp(target).err().map(|error| error.kind())
}

fn udp(target: SocketAddr) -> Option<ErrorKind> {
    ask_udp(target, 16).err().map(|error| error.kind())
}
