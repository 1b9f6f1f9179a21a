//! Services of one family and of both, and the way from one to both.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    load::{self, Connections},
    objects,
    scene::{Client, Scene, client_of, of_family, same, url},
};
use crate::cluster::{
    addresses, control_plane,
    spec::{Families, Family, Spec},
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

pub(super) fn every_policy_and_order_serves_its_families(scene: &Scene<'_>) -> Result<()> {
    let cases = [
        ("single", json!({"ipFamilyPolicy": "SingleStack"}), "ipv4"),
        (
            "single4",
            json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}),
            "ipv4",
        ),
        (
            "single6",
            json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]}),
            "ipv6",
        ),
        (
            "prefer",
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "ipv4,ipv6",
        ),
        (
            "prefer6",
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
            "ipv6,ipv4",
        ),
        (
            "require46",
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}),
            "ipv4,ipv6",
        ),
        (
            "require64",
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}),
            "ipv6,ipv4",
        ),
    ];
    scene.apply_ready(&[objects::servers("echo"), objects::client("client", 1)])?;
    let services: Vec<_> = cases
        .iter()
        .map(|(name, policy, _)| {
            let mut service = objects::service("echo", "LoadBalancer", policy);
            service["metadata"]["name"] = (*name).into();
            service
        })
        .collect();
    scene.apply(&services)?;
    for (name, _, families) in cases {
        serves(scene, name, families.parse()?)?;
    }
    Ok(())
}

/// Asks a Service in its families by all its frontends, and in the other one, if
/// there is another, by its NodePort.
fn serves(scene: &Scene<'_>, service: &str, families: Families) -> Result<()> {
    let cluster_ips = scene.cluster_ips(service)?;
    let load_balancer = scene.load_balancer(service)?;
    for addresses in [&cluster_ips, &load_balancer] {
        let found: Vec<_> = addresses.iter().map(|ip| Family::of(*ip)).collect();
        same(service, &found, &families.list().collect())?;
    }
    let node_port = scene.node_port(service)?;
    for family in families.list() {
        let cluster_ip = of_family(&cluster_ips, family)?;
        scene.ask(Client::Pod("client"), &url(cluster_ip, 80, "hostname"))?;
        let load_balancer = of_family(&load_balancer, family)?;
        scene.ask(Client::Outside, &url(load_balancer, 80, "hostname"))?;
        let node = addresses::node(family, 2);
        scene.ask(Client::Outside, &url(node, node_port, "hostname"))?;
    }
    for family in BOTH {
        if families.list().all(|other| other != family) {
            let node = addresses::node(family, 2);
            scene.refused(Client::Outside, &url(node, node_port, "hostname"))?;
        }
    }
    Ok(())
}

pub(super) fn pods_of_one_family_serve_and_ask_in_it(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&[
        objects::service(
            "echo",
            "LoadBalancer",
            &json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local"}),
        ),
        objects::service(
            "both",
            "ClusterIP",
            &json!({"ipFamilyPolicy": "RequireDualStack"}),
        ),
    ])?;
    scene.apply_ready(&[objects::server("both", 1)])?;
    let result = BOTH.into_iter().try_for_each(|family| {
        let families = format!("ipv{}", family.digit());
        let server = objects::server("echo", 2);
        let server = objects::resolving_in(family, &scene.namespace, server);
        scene.with_pods_of(2, &families, &server, |scene| one_family(scene, family))
    });
    scene.limit_pods(2, "ipv4,ipv6")?;
    result
}

/// The pod `echo` has addresses of this family only.
fn one_family(scene: &Scene<'_>, family: Family) -> Result<()> {
    let node_port = scene.node_port("echo")?;
    for address in scene.load_balancer("echo")? {
        let node = addresses::node(Family::of(address), 2);
        for url in [
            url(address, 80, "clientip"),
            url(node, node_port, "clientip"),
        ] {
            if Family::of(address) == family {
                let client = client_of(&scene.ask(Client::Outside, &url)?)?;
                same("the client", &client, &addresses::outside(family))?;
            } else {
                // There is no endpoint in this family.
                scene.unanswered(Client::Outside, &url)?;
            }
        }
    }
    // The name has addresses of both families, of which the pod can use one.
    let answer = scene.ask(Client::Pod("echo"), "http://both/clientip")?;
    same(
        "the client",
        &client_of(&answer)?,
        &scene.pod_ip("echo", family)?,
    )
}

pub(super) fn an_ipv4_cluster_turns_dual_stack(scene: &Scene<'_>) -> Result<()> {
    scene.apply_ready(&[objects::servers("echo"), objects::client("client", 1)])?;
    let named = |name: &str, policy: &str| {
        let more = json!({"ipFamilyPolicy": policy});
        let mut service = objects::service("echo", "LoadBalancer", &more);
        service["metadata"]["name"] = name.into();
        service
    };
    let old = [
        named("single", "SingleStack"),
        named("preferred", "PreferDualStack"),
    ];
    scene.apply(&old)?;
    let refused = scene.apply(&[named("required", "RequireDualStack")]);
    ensure!(
        refused.is_err(),
        "a Service has a family that the cluster lacks"
    );
    for service in ["single", "preferred"] {
        serves(scene, service, "ipv4".parse()?)?;
    }
    let cluster_ip = of_family(&scene.cluster_ips("single")?, Family::V4)?;
    let url = url(cluster_ip, 80, "hostname");
    let loads = [Connections::New, Connections::Kept]
        .map(|connections| load::from_pod(scene, "client", &url, connections));

    let both = Spec {
        services: scene.spec.families,
        ..scene.spec.clone()
    };
    control_plane::stop_api_server(scene.place)?;
    control_plane::start_api_server(scene.place, &both, &scene.kubectl)?;
    scene.eventually("two ranges", |scene| {
        let get = [
            "get",
            "servicecidr/kubernetes",
            "--output=jsonpath={.spec.cidrs}",
        ];
        let ranges = scene.kubectl(&get)?;
        let ipv6 = addresses::services(Family::V6).to_string();
        ensure!(ranges.contains(&ipv6), "the ranges are {ranges}");
        Ok(())
    })?;

    let addresses = |service: &str| -> Result<Vec<IpAddr>> { scene.cluster_ips(service) };
    same("the old Service", &addresses("single")?, &vec![cluster_ip])?;
    serves(scene, "single", "ipv4".parse()?)?;
    scene.apply(&[named("required", "RequireDualStack")])?;
    serves(scene, "required", "ipv4,ipv6".parse()?)?;
    let switch: Value = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    scene.patch("service/single", &switch)?;
    serves(scene, "single", "ipv4,ipv6".parse()?)?;
    // And back, while nothing of the first family is lost.
    let back = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    scene.patch("service/single", &back)?;
    serves(scene, "single", "ipv4".parse()?)?;
    loads.into_iter().try_for_each(|load| load?.finish(100))
}
