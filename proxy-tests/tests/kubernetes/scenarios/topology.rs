//! Hints that the real controller writes, and nodes that change their zone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    Host, Node, eventually,
    kubernetes::{Namespace, shared},
};
use serde_json::{Value, json};

use super::{DUAL, LIMIT, NODE_PORT, cluster_ips, from_outside, reach};

const ZONE: &str = "topology.kubernetes.io/zone";

fn distribute(namespace: &Namespace<'_>, distribution: Option<&str>) -> Result<()> {
    let patch = json!({ "spec": { "trafficDistribution": distribution } });
    namespace.patch("service/echo", &patch)
}

/// S29–S35: clients stay where the hints of all ready endpoints lead them, and
/// go anywhere when those lead nowhere.
#[test]
fn hints_keep_clients_near() -> Result<()> {
    let _only = lock();
    let cluster = shared()?;
    let namespace = cluster.namespace("hints")?;
    let [here, there] = [namespace.client(0, "here")?, namespace.client(1, "there")?];
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let both: [&Host; 2] = [&local, &remote];
    namespace.apply_echo("echo", NODE_PORT)?;
    let here = cluster_ips(&namespace, "echo", &here)?;
    let there = cluster_ips(&namespace, "echo", &there)?;
    let outside = from_outside(&namespace, 0, namespace.service("echo")?.node_port()?);
    let near = || -> Result<()> {
        reach(&here, &[&local])?;
        reach(&there, &[&remote])?;
        // Hints count wherever the whole cluster would (S42).
        reach(&outside, &[&local])
    };
    let anywhere = |servers: &[&Host]| -> Result<()> {
        [&here, &there, &outside]
            .into_iter()
            .try_for_each(|doors| reach(doors, servers))
    };
    anywhere(&both)?;
    for distribution in ["PreferClose", "PreferSameNode", "PreferSameZone"] {
        distribute(&namespace, Some(distribution))?;
        near()?;
        local.set_ready(false)?;
        anywhere(&[&remote])?;
        local.set_ready(true)?;
        near()?;
        distribute(&namespace, None)?;
        anywhere(&both)?;
    }
    Ok(())
}

/// S34, S35: a node without endpoints moves from zone to zone, and each agent
/// goes by the label as it is now.
#[test]
fn a_node_of_clients_changes_its_zone() -> Result<()> {
    let _only = lock();
    let cluster = shared()?;
    let namespace = cluster.namespace("wanderer")?;
    let client = namespace.client(2, "client")?;
    let [first, second] = namespace.backends([(0, "first"), (1, "second")])?;
    let both: [&Host; 2] = [&first, &second];
    namespace.apply_echo("echo", NODE_PORT)?;
    distribute(&namespace, Some("PreferClose"))?;
    let port = namespace.service("echo")?.node_port()?;
    let doors = [
        cluster_ips(&namespace, "echo", &client)?,
        from_outside(&namespace, 2, port),
    ];
    let doors = doors.as_flattened();
    reach(doors, &both)?;
    let zone = Zone::of(&namespace, 2);
    for (name, servers) in [
        ("zone-1", &[both[0]][..]),
        ("zone-2", &[both[1]]),
        ("zone-9", &both),
        ("zone-1", &[both[0]]),
    ] {
        zone.set(name)?;
        reach(doors, servers)?;
    }
    zone.remove()?;
    reach(doors, &both)
}

/// S30: endpoints move with their node, once the controller looks at the
/// Service again.
#[test]
fn a_node_of_endpoints_changes_its_zone() -> Result<()> {
    let _only = lock();
    let cluster = shared()?;
    let namespace = cluster.namespace("mover")?;
    let [here, there] = [namespace.client(0, "here")?, namespace.client(1, "there")?];
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    let both: [&Host; 2] = [&local, &remote];
    namespace.apply_echo("echo", DUAL)?;
    distribute(&namespace, Some("PreferClose"))?;
    let here = cluster_ips(&namespace, "echo", &here)?;
    let there = cluster_ips(&namespace, "echo", &there)?;
    reach(&here, &[&local])?;
    reach(&there, &[&remote])?;

    let zone = Zone::of(&namespace, 0);
    zone.set("zone-2")?;
    zone.reaches_slices(Some("zone-2"))?;
    reach(&here, &both)?;
    reach(&there, &both)?;
    // Within one zone, nodes can still be told apart.
    distribute(&namespace, Some("PreferSameNode"))?;
    reach(&here, &[&local])?;
    reach(&there, &[&remote])?;
    distribute(&namespace, Some("PreferSameZone"))?;
    reach(&here, &both)?;

    // An endpoint without zone has no hint, and then none counts.
    zone.remove()?;
    zone.reaches_slices(None)?;
    reach(&there, &both)?;
    zone.set("zone-1")?;
    zone.reaches_slices(Some("zone-1"))?;
    reach(&here, &[&local])?;
    reach(&there, &[&remote])
}

/// Zones are the cluster's, not a namespace's: one test at a time.
fn lock() -> MutexGuard<'static, ()> {
    static ZONES: Mutex<()> = Mutex::new(());
    ZONES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The zone label of a node; put back on drop, because the cluster is shared.
struct Zone<'cluster> {
    namespace: &'cluster Namespace<'cluster>,
    node: &'cluster Node,
}

impl<'cluster> Zone<'cluster> {
    fn of(namespace: &'cluster Namespace<'cluster>, node: usize) -> Self {
        let node = &namespace.lab().nodes[node];
        Self { namespace, node }
    }

    fn set(&self, zone: &str) -> Result<()> {
        self.label(&format!("{ZONE}={zone}"))
    }

    fn remove(&self) -> Result<()> {
        self.label(&format!("{ZONE}-"))
    }

    /// Waits until the controller has written this zone to the endpoints here.
    fn reaches_slices(&self, expected: Option<&str>) -> Result<()> {
        // It does not look for a change of a node, but of a Service.
        let mut looks = 0;
        eventually("the controller knows the zone", LIMIT, || {
            looks += 1;
            let patch = json!({ "metadata": { "annotations": { "looks": looks.to_string() } } });
            self.namespace.patch("service/echo", &patch)?;
            let slices = self
                .namespace
                .kubectl(&["get", "endpointslices", "-o", "json"])?;
            let slices: Value = serde_json::from_str(&slices)?;
            let slices = slices["items"].as_array().context("no list")?;
            let mut endpoints = slices
                .iter()
                .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
                .filter(|endpoint| endpoint["nodeName"] == self.node.name());
            ensure!(
                endpoints.all(|endpoint| endpoint["zone"].as_str() == expected),
                "{slices:?}"
            );
            Ok(())
        })
    }

    fn label(&self, label: &str) -> Result<()> {
        let arguments = ["label", "--overwrite", "node", self.node.name(), label];
        self.namespace.kubectl(&arguments).map(drop)
    }
}

impl Drop for Zone<'_> {
    fn drop(&mut self) {
        let _ = self.set(&format!("zone-{}", self.node.index()));
    }
}
