//! The datapath outlives the agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Service, Sockets, Topology,
    agent::{self, Agent},
    eventually,
    manifest::Lease,
    traffic::{ConnectLoad, Heartbeat, Server, TcpClient, ask_tcp, ask_udp},
};
use rstest::rstest;

const MILLISECOND: Duration = Duration::from_millis(1);

/// Killed and started again under load, three times: no packet is lost, no new
/// connection fails, and the changes made meanwhile are found.
#[rstest]
fn a_crash_loses_no_packet(#[values(Sockets::Off, Sockets::All)] sockets: Sockets) -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, kept, added] = node.add_pods(["client", "kept", "added"])?;
    let _servers = [
        Server::start(&kept, ECHO_TARGET)?,
        Server::start(&added, ECHO_TARGET)?,
    ];
    let service = Service::echo(lab.families()).endpoint(&kept);
    lab.manifests.write(&service)?;
    let options = AgentOptions {
        sockets,
        ..AgentOptions::for_many_flows()
    };
    let mut agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;

    let mut beats = Vec::new();
    let mut loads = Vec::new();
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        beats.push(Heartbeat::udp(&client, frontend, MILLISECOND)?);
        beats.push(Heartbeat::tcp(&client, frontend, MILLISECOND)?);
        loads.push(ConnectLoad::tcp(&client, frontend));
    }
    for round in 0..3 {
        agent.crash()?;
        for &family in lab.families().list() {
            let frontend = service.at(family, ECHO_PORT);
            client.run(|| TcpClient::to(frontend).connect()?.upload(10_000_000))?;
        }
        // Found at the next start, taken back at the one after.
        let changed = if round % 2 == 0 {
            service.clone().endpoint(&added)
        } else {
            service.clone()
        };
        lab.manifests.write(&changed)?;
        agent = Agent::start(node, &lab, &options)?;
        for &family in lab.families().list() {
            let frontend = service.at(family, ECHO_PORT);
            client.run(|| TcpClient::to(frontend).connect()?.download(10_000_000))?;
        }
        agent.wait_ready()?;
    }
    let frontend = service.at(lab.families().list()[0], ECHO_PORT);
    eventually("the added endpoint is used", Duration::from_secs(2), || {
        ensure!(
            client.run(|| ask_tcp(frontend))?.server == "added",
            "only the kept one"
        );
        Ok(())
    })?;
    for beat in beats {
        let report = beat.stop()?;
        assert!(
            report.lost.is_empty() && report.failure.is_none(),
            "{report:?}"
        );
        assert_eq!(report.servers.iter().collect::<Vec<_>>(), ["kept"]);
        assert!(report.sent > 100, "{report:?}");
    }
    for load in loads {
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{report:?}");
    }
    Ok(())
}

/// An agent asked to end leaves everything in force; `cleanup` removes it.
#[rstest]
fn the_end_leaves_forwarding_and_cleanup_removes_it(
    #[values(Sockets::Off, Sockets::Host, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::with_sockets(sockets))?;
    agent.wait_ready()?;

    let status = agent.terminate()?;
    assert!(status.success(), "{status}");
    assert!(!node.pins().pins()?.is_empty());
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for host in [&*client, node] {
            host.run(|| ask_tcp(frontend))?;
            host.run(|| ask_udp(frontend, 64))?;
        }
    }

    agent::command(node, &["cleanup"])?;
    assert_eq!(node.pins().pins()?, Vec::<std::path::PathBuf>::new());
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for host in [&*client, node] {
            let connect = || {
                TcpClient::to(frontend)
                    .within(Duration::from_millis(200))
                    .connect()
            };
            // The kernel takes programs off their devices in the background.
            eventually("Service is gone", Duration::from_secs(1), || {
                ensure!(host.run(connect).is_err(), "{} reaches it", host.name());
                Ok(())
            })?;
            host.run(|| ask_tcp(backend.at(family, ECHO_TARGET)))?;
        }
    }
    // Twice is as good as once.
    agent::command(node, &["cleanup"]).map(drop)
}

/// An agent that waits for a manifest is ended no later than others, and
/// forwarding goes on as well.
#[test]
fn the_end_waits_for_no_manifest() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    agent.crash()?;

    lab.manifests.write_text("slow.yaml", "kind: Service\n")?;
    let lease = Lease::take(&lab.manifests.path().join("slow.yaml"))?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    let limit = Duration::from_secs(20);
    eventually("the manifest is read", limit, || lease.expect_waiter())?;
    let status = agent.terminate()?;
    assert!(status.success(), "{status}");
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
        client.run(|| ask_udp(frontend, 64))?;
    }
    Ok(())
}
