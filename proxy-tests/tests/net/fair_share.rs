//! One client takes the whole flow table, and another one comes.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Host, Lab, Service, Topology, eventually,
    traffic::{ByteServer, Heartbeat, Server},
};

/// Flows of one family at a time.
const SIZE: usize = 2048;
/// Port of the backend that answers many.
const MANY: u16 = 9000;
/// Connections that carry traffic.
const BUSY: usize = 10;
const BEAT: Duration = Duration::from_millis(50);
/// From a full table until there is room for the other client.
const RELIEF: Duration = Duration::from_secs(10);
/// Connections that the other client opens then.
const NEWCOMERS: usize = 200;

/// Another client opens connections a few seconds later, while the first one goes on
/// trying to have more, and loses none that carries traffic.
#[test]
fn a_client_that_takes_the_flow_table_leaves_others_room() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let [greedy, other, backend] = lab.nodes[0].add_pods(["greedy", "other", "backend"])?;
    let _many = ByteServer::start(&backend, MANY)?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    let many = Service::new("many", 2, lab.families())
        .tcp(ECHO_PORT, MANY)
        .endpoint(&backend);
    lab.manifests.write(&service)?;
    lab.manifests.write(&many)?;
    let options = AgentOptions {
        flow_table_size: u32::try_from(SIZE)?,
        ..AgentOptions::default()
    };
    let agents = lab.start_agents(&options)?;

    for &family in lab.families().list() {
        let target = many.at(family, ECHO_PORT);
        let beats = (0..BUSY)
            .map(|_| Heartbeat::tcp(&greedy, service.at(family, ECHO_PORT), BEAT))
            .collect::<Result<Vec<_>>>()?;
        let mut taken = Vec::new();
        greedy.run(|| {
            while let Ok(stream) = open(target) {
                taken.push(stream);
            }
        });
        ensure!(taken.len() > SIZE * 3 / 4, "{family}: {}", taken.len());

        let over = AtomicBool::new(false);
        let opened = thread::scope(|scope| {
            scope.spawn(|| greedy.run(|| insist(target, &over)));
            let opened = come(&other, target);
            over.store(true, Ordering::Relaxed);
            opened
        });
        let opened = opened.with_context(|| family.to_string())?;
        ensure!(opened * 100 >= NEWCOMERS * 95, "{family}: {opened}");
        for beat in beats {
            let report = beat.stop()?;
            let intact = report.lost.is_empty() && report.failure.is_none();
            ensure!(intact && report.sent > 20, "{family}: {report:?}");
        }
    }
    ensure!(agents[0].counted("client_over_share")? > 0);
    Ok(())
}

/// Opens a connection and uses it.
fn open(target: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Tries to have more and more.
fn insist(target: SocketAddr, over: &AtomicBool) {
    let mut taken = Vec::new();
    while !over.load(Ordering::Relaxed) {
        match open(target) {
            Ok(stream) => taken.push(stream),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Waits until there is room, and then opens one connection after the other; returns
/// how many are open.
fn come(client: &Host, target: SocketAddr) -> Result<usize> {
    client.run(|| {
        let start = Instant::now();
        let first = eventually("the first connection", RELIEF, || open(target))?;
        println!("the first connection after {:?}", start.elapsed());
        let mut streams = vec![first];
        for _ in 1..NEWCOMERS {
            if let Ok(stream) = open(target) {
                streams.push(stream);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(streams.len())
    })
}
