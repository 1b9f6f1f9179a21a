//! Traffic that must not notice: flows that stay open, and new ones all the
//! time, in both families, from everywhere.

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use proxy_tests::{
    ECHO_PORT, Family, Host, Lab, Pod,
    kubernetes::ServiceView,
    traffic::{ConnectLoad, Heartbeat, ask_tcp, ask_udp},
};

/// Time between two messages of an open flow.
const BEAT: Duration = Duration::from_millis(20);
/// Between two new flows of a client: its ports must last.
const PAUSE: Duration = Duration::from_millis(20);

/// A client and what it connects to.
struct Path<'lab> {
    name: String,
    client: &'lab Host,
    target: SocketAddr,
}

fn paths<'lab>(
    lab: &'lab Lab,
    clients: &'lab [Pod; 2],
    service: &ServiceView,
) -> Result<Vec<Path<'lab>>> {
    let mut paths = Vec::new();
    for family in Family::BOTH {
        let cluster_ip = service.at(family, ECHO_PORT)?;
        let node_port = service.node_port()?;
        let node_ports = [0, 1].map(|node: usize| lab.nodes[node].at(family, node_port));
        let all: [(&str, &Host, SocketAddr); 5] = [
            ("pod, cluster IP", &clients[0], cluster_ip),
            ("pod of the other node, cluster IP", &clients[1], cluster_ip),
            ("node, cluster IP", &lab.nodes[0], cluster_ip),
            ("outside, NodePort", &lab.external, node_ports[0]),
            (
                "outside, NodePort of the other node",
                &lab.external,
                node_ports[1],
            ),
        ];
        paths.extend(all.map(|(name, client, target)| Path {
            name: format!("{family} {name}"),
            client,
            target,
        }));
    }
    Ok(paths)
}

/// All that runs.
pub(crate) struct Traffic {
    beats: Vec<(String, Heartbeat)>,
    loads: Vec<(String, ConnectLoad)>,
}

impl Traffic {
    /// Checks that every client reaches this many backends.
    pub(crate) fn is_possible(
        lab: &Lab,
        clients: &[Pod; 2],
        service: &ServiceView,
        backends: usize,
    ) -> Result<()> {
        for Path {
            name,
            client,
            target,
        } in paths(lab, clients, service)?
        {
            let mut servers = BTreeSet::new();
            for _ in 0..16 {
                servers.insert(client.run(|| ask_tcp(target))?.server);
                servers.insert(client.run(|| ask_udp(target, 64))?.server);
            }
            ensure!(servers.len() == backends, "{name}: {servers:?}");
        }
        Ok(())
    }

    pub(crate) fn start(lab: &Lab, clients: &[Pod; 2], service: &ServiceView) -> Result<Self> {
        let (mut beats, mut loads) = (Vec::new(), Vec::new());
        for Path {
            name,
            client,
            target,
        } in paths(lab, clients, service)?
        {
            let tcp = Heartbeat::tcp(client, target, BEAT)?;
            beats.push((format!("{name}, TCP"), tcp));
            let udp = Heartbeat::udp(client, target, BEAT)?;
            beats.push((format!("{name}, UDP"), udp));
            let tcp = ConnectLoad::start(client, PAUSE, move || ask_tcp(target));
            loads.push((format!("{name}, TCP"), tcp));
            let udp = ConnectLoad::start(client, PAUSE, move || ask_udp(target, 64));
            loads.push((format!("{name}, UDP"), udp));
        }
        Ok(Self { beats, loads })
    }

    pub(crate) fn stop(self) -> Result<Report> {
        let mut rows = Vec::new();
        for (name, beat) in self.beats {
            let report = beat.stop()?;
            let mut lost: Vec<_> = report.lost.iter().map(u64::to_string).collect();
            lost.extend(report.failure);
            rows.push(Row {
                name: format!("open flow: {name}"),
                done: report.sent,
                lost,
            });
        }
        for (name, load) in self.loads {
            let report = load.stop()?;
            rows.push(Row {
                name: format!("new flows: {name}"),
                done: report.answered() as u64,
                lost: report.failures,
            });
        }
        Ok(Report(rows))
    }
}

/// The result of one kind of traffic.
struct Row {
    name: String,
    /// Messages or connections.
    done: u64,
    lost: Vec<String>,
}

/// The result of all traffic.
pub(crate) struct Report(Vec<Row>);

impl Report {
    /// Losses of each row that are shown.
    const SHOWN: usize = 3;

    pub(crate) fn is_clean(&self) -> bool {
        self.0.iter().all(|row| row.lost.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{:<62}{:>10}{:>7}", "traffic", "done", "lost")?;
        for Row { name, done, lost } in &self.0 {
            writeln!(formatter, "{name:<62}{done:>10}{:>7}", lost.len())?;
            for what in lost.iter().take(Self::SHOWN) {
                writeln!(formatter, "    {what}")?;
            }
        }
        let total: u64 = self.0.iter().map(|row| row.done).sum();
        let lost: usize = self.0.iter().map(|row| row.lost.len()).sum();
        write!(formatter, "{:<62}{total:>10}{lost:>7}", "all")
    }
}
