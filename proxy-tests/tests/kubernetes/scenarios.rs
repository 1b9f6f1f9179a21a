//! Operators change their minds: what a real API server and its controller
//! make of every change, seen by pods and by a host outside the cluster.

mod affinity;
mod endpoints;
mod load_balancers;
mod policies;
mod ports;
mod terminating;
mod topology;
mod types;

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    ECHO_PORT, Family, Host,
    kubernetes::{Namespace, Probe},
    traffic::HeartbeatReport,
};

const DUAL: &str = "ipFamilyPolicy: RequireDualStack";
const NODE_PORT: &str = "ipFamilyPolicy: RequireDualStack, type: NodePort";

/// From `kubectl` to the last node, on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);

/// From a pod to the cluster IPs of a Service.
fn cluster_ips<'lab>(
    namespace: &Namespace<'_>,
    service: &str,
    client: &'lab Host,
) -> Result<[Probe<'lab>; 2]> {
    let service = namespace.service(service)?;
    Ok([
        Probe::new(client, service.at(Family::V4, ECHO_PORT)?),
        Probe::new(client, service.at(Family::V6, ECHO_PORT)?),
    ])
}

/// From the host outside to a port of node `node`, counted from 0.
fn from_outside<'lab>(namespace: &Namespace<'lab>, node: usize, port: u16) -> [Probe<'lab>; 2] {
    let lab = namespace.lab();
    let node = &lab.nodes[node];
    Family::BOTH.map(|family| Probe::through(node, &lab.external, node.at(family, port)))
}

/// From a pod to a port of the first node.
fn node_ports<'lab>(namespace: &Namespace<'_>, client: &'lab Host, port: u16) -> [Probe<'lab>; 2] {
    let node = &namespace.lab().nodes[0];
    Family::BOTH.map(|family| Probe::new(client, node.at(family, port)))
}

/// All of them reach exactly these.
fn reach(probes: &[Probe<'_>], servers: &[&Host]) -> Result<()> {
    probes.iter().try_for_each(|probe| probe.reaches(servers))
}

/// Nothing is lost, and one server has answered everything.
fn undisturbed(report: &HeartbeatReport) -> Result<()> {
    ensure!(
        report.lost.is_empty() && report.failure.is_none() && report.servers.len() == 1,
        "{report:?}"
    );
    Ok(())
}
