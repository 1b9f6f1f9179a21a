//! Clusters of one family: the nodes, the pods and the API server have no
//! address of the other.

use anyhow::{Result, ensure};
use proxy_tests::{
    ECHO_PORT, Families, Family, Host, Topology,
    kubernetes::{Cluster, Probe, ServiceRanges},
};
use rstest::rstest;

#[rstest]
#[case::ipv4(Families::V4Only, Family::V4, Family::V6)]
#[case::ipv6(Families::V6Only, Family::V6, Family::V4)]
fn a_cluster_of_one_family_works(
    #[case] families: Families,
    #[case] own: Family,
    #[case] other: Family,
) -> Result<()> {
    let topology = Topology {
        families,
        ..Topology::FLANNEL
    };
    let cluster = Cluster::start(topology, ServiceRanges::of(families))?;
    let namespace = cluster.namespace("single-stack")?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    for host in [&*client, &*local, &*remote, &cluster.lab().nodes[0]] {
        has_no_address(host, other)?;
    }

    // What prefers both gets the one there is.
    for (name, fields) in [
        ("plain", String::new()),
        ("single", "ipFamilyPolicy: SingleStack".to_owned()),
        ("prefer", "ipFamilyPolicy: PreferDualStack".to_owned()),
        ("explicit", format!("ipFamilies: [{own}]")),
    ] {
        namespace.apply_echo(name, &fields)?;
        let service = namespace.service(name)?;
        assert_eq!(service.families(), [own], "{name}");
        Probe::new(&client, service.at(own, ECHO_PORT)?).reaches(&[&local, &remote])?;
    }

    // What insists on the other is refused by the API server, and nothing
    // that is in force notices.
    for fields in [
        "ipFamilyPolicy: RequireDualStack".to_owned(),
        format!("ipFamilies: [{other}]"),
    ] {
        let refusal = namespace.apply_echo("refused", &fields);
        let refusal = refusal.expect_err("the API server has one family");
        ensure!(format!("{refusal:#}").contains("Invalid"), "{refusal:#}");
    }
    remote.set_ready(false)?;
    for name in ["plain", "prefer"] {
        let service = namespace.service(name)?;
        Probe::new(&client, service.at(own, ECHO_PORT)?).reaches(&[&local])?;
    }
    Ok(())
}

/// Not even on loopback.
fn has_no_address(host: &Host, family: Family) -> Result<()> {
    let flag = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    let shown = host.exec("ip", &[flag, "-oneline", "addr"])?;
    ensure!(shown.trim().is_empty(), "{}: {shown}", host.name());
    Ok(())
}

/// The nodes have both families, the API server gives Services only one.
#[rstest]
#[case::ipv4(ServiceRanges::V4, Family::V4)]
#[case::ipv6(ServiceRanges::V6, Family::V6)]
fn services_of_one_family_work_on_dual_stack_nodes(
    #[case] ranges: ServiceRanges,
    #[case] own: Family,
) -> Result<()> {
    let cluster = Cluster::start(Topology::ROUTED, ranges)?;
    let namespace = cluster.namespace("one-range")?;
    let client = namespace.client(0, "client")?;
    let [backend] = namespace.backends([(1, "backend")])?;
    let refusal = namespace.apply_echo("refused", "ipFamilyPolicy: RequireDualStack");
    let refusal = refusal.expect_err("the API server has one family");
    ensure!(format!("{refusal:#}").contains("Invalid"), "{refusal:#}");

    namespace.apply_echo("echo", "ipFamilyPolicy: PreferDualStack")?;
    let service = namespace.service("echo")?;
    assert_eq!(service.families(), [own]);
    Probe::new(&client, service.at(own, ECHO_PORT)?).reaches(&[&backend])
}
