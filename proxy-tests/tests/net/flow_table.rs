//! A flow table that is too small for what comes.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    Agent, AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Pod, Service, Topology, Wiring,
    eventually,
    traffic::{Heartbeat, Server, ask_tcp, ask_udp},
};
use rstest::rstest;
use socket2::{Domain, Socket, Type};

/// Flows of one family at a time.
const SIZE: u16 = 1024;
/// Connections and conversations of each family that carry traffic.
const OPEN: usize = 10;
const BEAT: Duration = Duration::from_millis(50);
const AT_ONCE: Duration = Duration::from_secs(1);
/// One flood should do.
const FULL: Duration = Duration::from_secs(30);
/// The flood goes on for this long: longer than a half-open flow lives in a
/// full table.
const FLOOD: Duration = Duration::from_secs(8);
/// From the flood's end until a half-open flow has gone from a full table: two
/// sweeps, and two seconds in between.
const RELIEF: Duration = Duration::from_secs(15);

const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};

/// A Service whose backend never answers, or a flood's flow would be one with
/// traffic, and what keeps that backend silent.
fn silent(lab: &Lab, backend: &Pod) -> Result<(Service, Vec<UdpSocket>)> {
    let families = lab.families();
    let service = Service::new("silent", 2, families)
        .tcp(ECHO_PORT, 9)
        .udp(ECHO_PORT, 9)
        .endpoint(backend);
    let sinks = families
        .list()
        .iter()
        .map(|&family| backend.run(|| UdpSocket::bind(backend.at(family, 9))))
        .collect::<io::Result<_>>()?;
    Ok((service, sinks))
}

/// A flood of ten times the table's size, again and again: new flows are
/// refused and counted, those that carry traffic lose nothing, and when it is
/// over new flows are served.
#[rstest]
fn a_flood_harms_no_flow_that_carries_traffic(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let [client, flooder, backend] = lab.nodes[0].add_pods(["client", "flooder", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    let (silent, _sinks) = silent(&lab, &backend)?;
    lab.manifests.write(&service)?;
    lab.manifests.write(&silent)?;
    let options = AgentOptions {
        flow_table_size: SIZE.into(),
        ..AgentOptions::default()
    };
    let agents = lab.start_agents(&options)?;

    let mut beats = Vec::new();
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for _ in 0..OPEN {
            beats.push(Heartbeat::tcp(&client, frontend, BEAT)?);
            beats.push(Heartbeat::udp(&client, frontend, BEAT)?);
        }
    }
    for &family in lab.families().list() {
        // On a busy machine a flood may take so long that its first flows have
        // expired at the end.
        eventually("a full table", FULL, || {
            let before = refused(&agents[0])?;
            flood(&flooder, family, silent.at(family, ECHO_PORT))?;
            let refused = refused(&agents[0])? - before;
            ensure!(refused >= 8 * u64::from(SIZE), "{refused} refused");
            expect_refusal(&flooder, service.at(family, ECHO_PORT))
        })
        .with_context(|| family.to_string())?;
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let floods = Family::BOTH.map(|family| {
            let (over, flooder) = (&over, &*flooder);
            let target = silent.at(family, ECHO_PORT);
            scope.spawn(move || -> Result<()> {
                while !over.load(Ordering::Relaxed) {
                    flood(flooder, family, target)?;
                }
                Ok(())
            })
        });
        thread::sleep(FLOOD);
        over.store(true, Ordering::Relaxed);
        floods
            .into_iter()
            .try_for_each(|flood| flood.join().expect("no panic"))
    })?;
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        eventually("new flows", RELIEF, || {
            ensure!(agents[0].counted("flow_expired")? > 0, "none expired");
            client.run(|| ask_tcp(frontend)).context("TCP")?;
            client.run(|| ask_udp(frontend, 16)).context("UDP")
        })?;
    }
    for beat in beats {
        let report = beat.stop()?;
        let intact = report.lost.is_empty() && report.failure.is_none();
        assert!(intact && report.servers.len() == 1, "{report:?}");
        assert!(report.sent > 50, "{report:?}");
    }
    Ok(())
}

/// Tables that an earlier agent made do not shrink, whatever a new agent is told,
/// which says so; what it does for a full table is done by the real size.
#[test]
fn tables_do_not_shrink() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let [client, flooder, backend] = lab.nodes[0].add_pods(["client", "flooder", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    let (silent, _sinks) = silent(&lab, &backend)?;
    lab.manifests.write(&service)?;
    lab.manifests.write(&silent)?;
    let with_size = |size: u16| AgentOptions {
        flow_table_size: size.into(),
        ..AgentOptions::default()
    };
    for agent in lab.start_agents(&with_size(SIZE))? {
        agent.crash()?;
    }
    let agents = lab.start_agents(&with_size(SIZE / 4))?;
    let log = agents[0].log();
    ensure!(log.contains("keep the size they were made with"), "{log}");
    for &family in lab.families().list() {
        flood(&flooder, family, silent.at(family, ECHO_PORT))?;
    }
    ensure!(agents[0].counted("flow_table_full")? > 0, "it was not full");
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        eventually("new flows", RELIEF, || {
            client.run(|| ask_tcp(frontend)).context("TCP")?;
            client.run(|| ask_udp(frontend, 16)).context("UDP")
        })?;
    }
    Ok(())
}

/// New flows refused because there was no room, or the flooder had its share.
fn refused(agent: &Agent) -> Result<u64> {
    Ok(agent.counted("flow_table_full")? + agent.counted("client_over_share")?)
}

/// Ten times as many new flows as there is room for, half of them TCP.
fn flood(host: &Host, family: Family, target: SocketAddr) -> Result<()> {
    host.run(|| {
        for port in (20_000..).take(usize::from(SIZE) * 10) {
            let source = host.at(family, port);
            let outcome = if port % 2 == 0 {
                knock(source, target)
            } else {
                shout(source, target)
            };
            outcome.with_context(|| format!("from {source}"))?;
        }
        Ok(())
    })
}

/// Sends a SYN and waits for nothing.
fn knock(source: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    match socket.connect(&target.into()) {
        // Refused before the call is over, or on its way.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        outcome => outcome,
    }
}

/// Sends a datagram and waits for nothing.
fn shout(source: SocketAddr, target: SocketAddr) -> io::Result<()> {
    UdpSocket::bind(source)?.send_to(b"!", target).map(drop)
}

/// A host hears at once that there is no room for it.
fn expect_refusal(client: &Host, frontend: SocketAddr) -> Result<()> {
    let start = Instant::now();
    let tcp = client.run(|| ask_tcp(frontend));
    let kind = tcp.as_ref().err().map(io::Error::kind);
    ensure!(kind == Some(ErrorKind::ConnectionRefused), "{tcp:?}");
    let udp = client.run(|| ask_udp(frontend, 16));
    // "Administratively prohibited": each family has its own word for it.
    let code = udp.as_ref().err().and_then(io::Error::raw_os_error);
    let prohibited = [Some(libc::EHOSTUNREACH), Some(libc::EACCES)].contains(&code);
    ensure!(prohibited, "{udp:?}");
    ensure!(start.elapsed() < AT_ONCE, "after {:?}", start.elapsed());
    Ok(())
}
