//! Every way to ask the API server for IP families gives the families that
//! were asked for, and no other.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    ECHO_PORT, Family, Host, eventually,
    kubernetes::{ApiPod, Namespace, Probe, shared},
    traffic::Heartbeat,
};
use rstest::{Context, rstest};
use serde_json::json;

const IPV4: &[Family] = &[Family::V4];
const IPV6: &[Family] = &[Family::V6];
const IPV4_FIRST: &[Family] = &[Family::V4, Family::V6];
const IPV6_FIRST: &[Family] = &[Family::V6, Family::V4];

/// From `kubectl` to the last node's tables, on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);

#[rstest]
#[case::no_policy("", IPV4)]
#[case::single("ipFamilyPolicy: SingleStack", IPV4)]
#[case::prefer("ipFamilyPolicy: PreferDualStack", IPV4_FIRST)]
#[case::require("ipFamilyPolicy: RequireDualStack", IPV4_FIRST)]
#[case::ipv4("ipFamilies: [IPv4]", IPV4)]
#[case::ipv6("ipFamilies: [IPv6]", IPV6)]
#[case::ipv4_and_ipv6(
    "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]",
    IPV4_FIRST
)]
#[case::ipv6_and_ipv4(
    "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]",
    IPV6_FIRST
)]
#[case::single_ipv6("ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]", IPV6)]
#[case::prefer_ipv4("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4]", IPV4_FIRST)]
#[case::prefer_ipv6("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]", IPV6_FIRST)]
#[case::prefer_both(
    "ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6, IPv4]",
    IPV6_FIRST
)]
#[case::load_balancer("ipFamilyPolicy: PreferDualStack, type: LoadBalancer", IPV4_FIRST)]
fn a_service_has_the_families_it_asks_for(
    #[context] context: Context,
    #[case] fields: &str,
    #[case] families: &[Family],
) -> Result<()> {
    let cluster = shared()?;
    let name = context.description.unwrap_or("case").replace('_', "-");
    let namespace = cluster.namespace(&name)?;
    let client = namespace.client(0, "client")?;
    let [local, remote] = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo("echo", fields)?;

    let service = namespace.service("echo")?;
    assert_eq!(service.families(), families);
    for &family in families {
        Probe::new(&client, service.at(family, ECHO_PORT)?).reaches(&[&local, &remote])?;
    }
    only_these_are_served(&namespace, families)
}

/// In a family a Service does not have, no node has a frontend of it.
fn only_these_are_served(namespace: &Namespace<'_>, families: &[Family]) -> Result<()> {
    for node in 0..namespace.lab().nodes.len() {
        for family in Family::BOTH {
            eventually("tables of a node", LIMIT, || {
                ensure!(
                    namespace.is_served(node, "echo", family)? == families.contains(&family),
                    "{family} on node {node}"
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A second family comes and goes; flows of the first do not notice.
#[rstest]
#[case::ipv4(Family::V4, Family::V6)]
#[case::ipv6(Family::V6, Family::V4)]
fn a_switch_of_families_disturbs_no_flow(
    #[case] kept: Family,
    #[case] added: Family,
) -> Result<()> {
    let cluster = shared()?;
    let name = format!("switch-{}", kept.api_name().to_lowercase());
    let namespace = cluster.namespace(&name)?;
    let client = namespace.client(0, "client")?;
    let backends = namespace.backends([(0, "local"), (1, "remote")])?;
    namespace.apply_echo("echo", &format!("ipFamilies: [{kept}]"))?;
    let single = namespace.service("echo")?;
    let kept_end = single.at(kept, ECHO_PORT)?;
    Probe::new(&client, kept_end).reaches(&hosts(&backends))?;

    let beat = Duration::from_millis(2);
    let beats = [
        Heartbeat::udp(&client, kept_end, beat)?,
        Heartbeat::tcp(&client, kept_end, beat)?,
    ];
    for _ in 0..2 {
        namespace.patch(
            "service/echo",
            &json!({ "spec": { "ipFamilyPolicy": "PreferDualStack" } }),
        )?;
        let dual = namespace.service("echo")?;
        assert_eq!(dual.families(), [kept, added]);
        assert_eq!(dual.at(kept, ECHO_PORT)?, kept_end);
        let added_end = dual.at(added, ECHO_PORT)?;
        Probe::new(&client, added_end).reaches(&hosts(&backends))?;

        namespace.patch(
            "service/echo",
            &json!({ "spec": { "ipFamilyPolicy": "SingleStack" } }),
        )?;
        assert_eq!(namespace.service("echo")?.families(), [kept]);
        Probe::new(&client, added_end).reaches_nobody()?;
        only_these_are_served(&namespace, &[kept])?;
        Probe::new(&client, kept_end).reaches(&hosts(&backends))?;
    }
    for beat in beats {
        let report = beat.stop()?;
        assert!(
            report.lost.is_empty() && report.failure.is_none(),
            "{report:?}"
        );
        // One flow, one server.
        assert_eq!(report.servers.len(), 1, "{report:?}");
    }
    Ok(())
}

fn hosts(backends: &[ApiPod; 2]) -> [&Host; 2] {
    let [first, second] = backends;
    [first, second]
}

/// Services without selector are served from slices made by hand, each family
/// from its own.
#[test]
fn slices_made_by_hand_serve_their_own_family() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("by-hand")?;
    let client = namespace.client(0, "client")?;
    let [first, second] = namespace.backends([(0, "first"), (1, "second")])?;
    namespace.apply(
        "
apiVersion: v1
kind: Service
metadata: { name: echo }
spec:
  ipFamilyPolicy: RequireDualStack
  ports:
  - { name: tcp, port: 80, protocol: TCP }
  - { name: udp, port: 80, protocol: UDP }
",
    )?;
    let service = namespace.service("echo")?;
    for family in Family::BOTH {
        Probe::new(&client, service.at(family, ECHO_PORT)?).is_refused()?;
    }
    let slice = |family: Family, backend: &Host| {
        namespace.apply(&format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: echo-{}
  labels: {{ kubernetes.io/service-name: echo }}
addressType: {family}
endpoints:
- addresses: ['{}']
ports:
- {{ name: tcp, port: 8080, protocol: TCP }}
- {{ name: udp, port: 8080, protocol: UDP }}
",
            family.api_name().to_lowercase(),
            backend.address(family),
        ))
    };
    // One family first: the other still has nobody.
    slice(Family::V4, &first)?;
    Probe::new(&client, service.at(Family::V4, ECHO_PORT)?).reaches(&[&first])?;
    Probe::new(&client, service.at(Family::V6, ECHO_PORT)?).is_refused()?;
    slice(Family::V6, &second)?;
    Probe::new(&client, service.at(Family::V6, ECHO_PORT)?).reaches(&[&second])?;
    Probe::new(&client, service.at(Family::V4, ECHO_PORT)?).reaches(&[&first])?;
    // And the other way round.
    slice(Family::V4, &second)?;
    slice(Family::V6, &first)?;
    Probe::new(&client, service.at(Family::V4, ECHO_PORT)?).reaches(&[&second])?;
    Probe::new(&client, service.at(Family::V6, ECHO_PORT)?).reaches(&[&first])
}

/// Headless Services are for DNS alone, with a selector and without.
#[test]
fn headless_services_are_not_proxied() -> Result<()> {
    let cluster = shared()?;
    let namespace = cluster.namespace("headless")?;
    let client = namespace.client(0, "client")?;
    let [backend] = namespace.backends([(1, "backend")])?;
    let headless = "ipFamilyPolicy: RequireDualStack, clusterIP: None";
    namespace.apply_echo("with-selector", headless)?;
    namespace.apply(
        "
apiVersion: v1
kind: Service
metadata: { name: without-selector }
spec:
  ipFamilyPolicy: RequireDualStack
  clusterIP: None
  ports: [{ port: 80 }]
",
    )?;
    // What comes after them is in force, so they have been seen.
    namespace.apply_echo("echo", "ipFamilyPolicy: RequireDualStack")?;
    let service = namespace.service("echo")?;
    for family in Family::BOTH {
        Probe::new(&client, service.at(family, ECHO_PORT)?).reaches(&[&backend])?;
        for node in 0..2 {
            for headless in ["with-selector", "without-selector"] {
                assert!(!namespace.is_served(node, headless, family)?, "{headless}");
            }
        }
        // The pod is where DNS says, at its own port only.
        Probe::new(&client, backend.at(family, 8080)).reaches(&[&backend])?;
        Probe::new(&client, backend.at(family, ECHO_PORT)).reaches_nobody()?;
    }
    Ok(())
}
