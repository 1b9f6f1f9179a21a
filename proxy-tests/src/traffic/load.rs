//! New connections one after the other, to see whether any fails meanwhile.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Answer, ask_tcp, ask_udp};
use crate::host::Host;

/// Between two connections: a client's ports, each closed one minute ago or
/// more, must last for the longest test.
const PAUSE: Duration = Duration::from_millis(2);

/// The result of a [`ConnectLoad`].
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Answers by server.
    pub servers: BTreeMap<String, usize>,
    /// Errors, each with the number of its connection.
    pub failures: Vec<String>,
}

impl LoadReport {
    /// Connections that were answered.
    pub fn answered(&self) -> usize {
        self.servers.values().sum()
    }
}

/// Connects from a host to a server again and again, until stopped.
#[derive(Debug)]
pub struct ConnectLoad {
    stopping: Arc<AtomicBool>,
    worker: Option<JoinHandle<LoadReport>>,
}

impl ConnectLoad {
    /// New TCP connections.
    pub fn tcp(host: &Host, target: SocketAddr) -> Self {
        Self::start(host, PAUSE, move || ask_tcp(target))
    }

    /// Datagrams from new sockets.
    pub fn udp(host: &Host, target: SocketAddr) -> Self {
        Self::start(host, PAUSE, move || ask_udp(target, 64))
    }

    /// Asks as told, with this pause after each answer.
    pub fn start(
        host: &Host,
        pause: Duration,
        ask: impl Fn() -> std::io::Result<Answer> + Send + 'static,
    ) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let worker = host.spawn(move || {
            let mut report = LoadReport::default();
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                match ask() {
                    Ok(answer) => *report.servers.entry(answer.server).or_default() += 1,
                    Err(error) => report.failures.push(format!("{number}: {error}")),
                }
                thread::sleep(pause);
            }
            report
        });
        Self {
            stopping,
            worker: Some(worker),
        }
    }

    /// Stops it and tells what happened.
    pub fn stop(mut self) -> Result<LoadReport> {
        self.stopping.store(true, Ordering::Relaxed);
        let worker = self.worker.take().context("a load stops once")?;
        worker.join().ok().context("the load panicked")
    }
}

impl Drop for ConnectLoad {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}
