//! The agents learn from the API server where cluster IPs come from (S47).

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    Family, Topology,
    addressing::service_cidr,
    eventually,
    kubernetes::{Cluster, ServiceRanges},
    settings,
};
use serde_json::json;

/// From `kubectl` to the last node's settings, on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);

fn expect(cluster: &Cluster, expected: &[&str]) -> Result<()> {
    for node in &cluster.lab().nodes {
        eventually("the programs know the ranges", LIMIT, || {
            let ranges = settings::service_ranges(node)?;
            ensure!(ranges == expected, "{}: {ranges:?}", node.name());
            Ok(())
        })?;
    }
    Ok(())
}

/// The API server's own ranges are there from the start; others come and go.
#[test]
fn the_api_server_says_where_cluster_ips_come_from() -> Result<()> {
    let topology = Topology::ROUTED;
    let cluster = Cluster::start(topology, ServiceRanges::of(topology.families))?;
    let [v4, v6] = Family::BOTH.map(service_cidr);
    expect(&cluster, &[v4, v6])?;
    let (more_v4, more_v6) = ("10.98.0.0/16", "fd00:10:98::/112");
    cluster.kubectl().create(&[json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": "more" },
        "spec": { "cidrs": [more_v4, more_v6] },
    })])?;
    expect(&cluster, &[v4, more_v4, v6, more_v6])?;
    cluster
        .kubectl()
        .run(&["delete", "servicecidr", "more", "--wait=false"])?;
    expect(&cluster, &[v4, v6])
}
