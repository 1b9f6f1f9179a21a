//! A dual-stack cluster whose default family is IPv6.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use proxy_tests::{
    ECHO_PORT, Family, Topology, eventually,
    kubernetes::{Cluster, Probe, ServiceRanges},
};

#[test]
fn ipv6_is_the_default_and_ipv4_the_other() -> Result<()> {
    let cluster = Cluster::start(Topology::ROUTED, ServiceRanges::V6ThenV4)?;
    let namespace = cluster.namespace("ipv6-first")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    for (name, fields, families) in [
        ("plain", "", &[Family::V6][..]),
        (
            "prefer",
            "ipFamilyPolicy: PreferDualStack",
            &[Family::V6, Family::V4],
        ),
        ("ipv4", "ipFamilies: [IPv4]", &[Family::V4]),
    ] {
        namespace.apply_echo(name, fields)?;
        let service = namespace.service(name)?;
        assert_eq!(service.families(), families, "{name}");
        for &family in families {
            Probe::new(&client, service.at(family, ECHO_PORT)?).reaches(&[&local, &remote])?;
        }
        for family in Family::BOTH {
            let expected = families.contains(&family);
            assert_eq!(namespace.is_served(0, name, family)?, expected, "{name}");
        }
    }

    // The laboratory itself: the slices are the real controller's work.
    let expected: BTreeSet<_> = [&local, &remote]
        .iter()
        .flat_map(|pod| pod.addresses().list())
        .map(|address| address.to_string())
        .collect();
    eventually("slices", Duration::from_secs(10), || {
        let slices = cluster.kubectl().get(&[
            "--namespace",
            "ipv6-first",
            "endpointslices",
            "--selector",
            "kubernetes.io/service-name=prefer,\
             endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io",
        ])?;
        let found: BTreeSet<_> = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
            .filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
            .collect();
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
}
