//! A steady exchange over one socket, to see what is lost meanwhile.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{TcpClient, UdpClient};
use crate::host::Host;

/// Time after which a missing answer counts as lost.
const GRACE: Duration = Duration::from_secs(1);
/// The last request has not been sent.
const NOT_YET: u64 = u64::MAX;

/// The result of a [`Heartbeat`].
#[derive(Clone, Debug, Default)]
pub struct HeartbeatReport {
    /// Requests sent.
    pub sent: u64,
    /// Requests never answered, by number.
    pub lost: Vec<u64>,
    /// Servers that answered.
    pub servers: BTreeSet<String>,
    /// The longest time between two answers.
    pub longest_gap: Duration,
    /// The error that ended it early.
    pub failure: Option<String>,
}

/// Requests at an interval from a host to a server, until stopped.
#[derive(Debug)]
pub struct Heartbeat {
    stopping: Arc<AtomicBool>,
    worker: Option<JoinHandle<HeartbeatReport>>,
}

impl Heartbeat {
    /// Numbered datagrams from one connected UDP socket.
    pub fn udp(host: &Host, target: SocketAddr, interval: Duration) -> Result<Self> {
        let client = host.run(|| UdpClient::connect(target))?;
        client.receive_much()?;
        Ok(Self::start(host, move |stopping| {
            beat_udp(client, interval, stopping)
        }))
    }

    /// Echoes over one TCP connection.
    pub fn tcp(host: &Host, target: SocketAddr, interval: Duration) -> Result<Self> {
        let mut connection = host.run(|| TcpClient::to(target).connect())?;
        connection.start_echo()?;
        Ok(Self::start(host, move |stopping| {
            let mut report = HeartbeatReport::default();
            report.servers.insert(connection.answer.server.clone());
            let mut last = Instant::now();
            while !stopping.load(Ordering::Relaxed) {
                report.sent += 1;
                if let Err(error) = connection.echo(&report.sent.to_be_bytes()) {
                    report.lost.push(report.sent);
                    report.failure = Some(error.to_string());
                    break;
                }
                report.longest_gap = report.longest_gap.max(last.elapsed());
                last = Instant::now();
                thread::sleep(interval);
            }
            report
        }))
    }

    fn start(
        host: &Host,
        work: impl FnOnce(&AtomicBool) -> HeartbeatReport + Send + 'static,
    ) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        Self {
            stopping,
            worker: Some(host.spawn(move || work(&stop))),
        }
    }

    /// Stops it and tells what happened.
    pub fn stop(mut self) -> Result<HeartbeatReport> {
        self.stopping.store(true, Ordering::Relaxed);
        let worker = self.worker.take().context("a heartbeat stops once")?;
        worker.join().ok().context("the heartbeat panicked")
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn beat_udp(client: UdpClient, interval: Duration, stopping: &AtomicBool) -> HeartbeatReport {
    let client = Arc::new(client);
    let finished = Arc::new(AtomicU64::new(NOT_YET));
    let listener = thread::spawn({
        let (client, finished) = (Arc::clone(&client), Arc::clone(&finished));
        move || collect(&client, &finished)
    });
    let mut sent = 0_u64;
    let mut failure: Option<io::Error> = None;
    while !stopping.load(Ordering::Relaxed) {
        sent += 1;
        if let Err(error) = client.send(&sent.to_be_bytes()) {
            failure = Some(error);
        }
        thread::sleep(interval);
    }
    finished.store(sent, Ordering::Relaxed);
    let (answered, mut report) = listener.join().unwrap_or_default();
    report.sent = sent;
    report.lost = (1..=sent)
        .filter(|number| !answered.contains(number))
        .collect();
    report.failure = failure.map(|error| error.to_string());
    report
}

/// Receives answers until all are there or stop coming after the last request;
/// `finished` is its number, or [`NOT_YET`].
fn collect(client: &UdpClient, finished: &AtomicU64) -> (BTreeSet<u64>, HeartbeatReport) {
    let mut report = HeartbeatReport::default();
    let mut answered = BTreeSet::new();
    let mut last = Instant::now();
    let _ = client.set_patience(Duration::from_millis(50));
    loop {
        let sent = finished.load(Ordering::Relaxed);
        if answered.len() as u64 == sent {
            return (answered, report);
        }
        match client.receive() {
            Ok((answer, echo)) => {
                report.servers.insert(answer.server);
                if let Ok(number) = echo.try_into() {
                    answered.insert(u64::from_be_bytes(number));
                }
                report.longest_gap = report.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
            // Refusals are news about single datagrams, which count as lost.
            Err(_) if sent != NOT_YET && last.elapsed() > GRACE => return (answered, report),
            Err(_) if last.elapsed() > 10 * GRACE => return (answered, report),
            Err(_) => {}
        }
    }
}
