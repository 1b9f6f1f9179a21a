//! Other networks of pods.

use anyhow::Result;
use serde_json::json;

use super::{
    objects,
    scene::{Client, Scene, client_of, of_family, same, url},
};
use crate::cluster::{addresses, check, spec::Family};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

pub(super) fn nodes_joined_by_vxlan_serve(scene: &Scene<'_>) -> Result<()> {
    nodes_serve_each_other(scene)
}

pub(super) fn nodes_joined_by_routes_of_flannel_serve(scene: &Scene<'_>) -> Result<()> {
    nodes_serve_each_other(scene)
}

/// Every way, and much data between pods of two nodes, through a Service.
fn nodes_serve_each_other(scene: &Scene<'_>) -> Result<()> {
    check::run(scene.place, &scene.kubectl)?;
    let more = json!({"ipFamilyPolicy": "RequireDualStack"});
    scene.apply(&[objects::service("far", "LoadBalancer", &more)])?;
    scene.apply_ready(&[objects::server("far", 2), objects::client("client", 1)])?;
    for family in BOTH {
        let cluster_ip = of_family(&scene.cluster_ips("far")?, family)?;
        let client = scene.ask(Client::Pod("client"), &url(cluster_ip, 80, "clientip"))?;
        same(
            "the client",
            &client_of(&client)?,
            &scene.pod_ip("client", family)?,
        )?;
        let script = |url: &str| {
            format!(
                "(echo -n msg=; head -c 1000000 /dev/zero | tr '\\0' x) | \
                 curl --silent --fail --max-time 10 --data-binary @- {url} | wc -c"
            )
        };
        let node = addresses::node(family, 1);
        let ways = [
            (Client::Pod("client"), url(cluster_ip, 80, "echo")),
            (Client::Outside, url(node, scene.node_port("far")?, "echo")),
        ];
        for (client, url) in ways {
            let answer = scene.shell(client, &script(&url))?;
            same(
                &format!("the length of the answer of {url}"),
                &answer.trim(),
                &"1000000",
            )?;
        }
    }
    Ok(())
}

pub(super) fn macvlan_pods_reach_dns_and_cluster_ips(scene: &Scene<'_>) -> Result<()> {
    let more = json!({"ipFamilyPolicy": "RequireDualStack"});
    scene.apply(&[objects::service("echo", "ClusterIP", &more)])?;
    scene.apply_ready(&[objects::servers("echo"), objects::client("client", 1)])?;
    for family in BOTH {
        let cluster_ip = of_family(&scene.cluster_ips("echo")?, family)?;
        scene.ask(Client::Pod("client"), &url(cluster_ip, 80, "hostname"))?;
        let name = format!("echo.{}.svc.cluster.local", scene.namespace);
        let kind = if family == Family::V4 { "A" } else { "AAAA" };
        let dns = addresses::dns(family);
        for transport in ["+notcp", "+tcp"] {
            let script = format!("dig +short +time=2 +tries=1 {transport} @{dns} {name} {kind}");
            let answer = scene.eventually(&format!("DNS by {dns} {transport}"), |scene| {
                scene.shell(Client::Pod("client"), &script)
            })?;
            same(
                "the name's address",
                &answer.trim(),
                &cluster_ip.to_string().as_str(),
            )?;
        }
    }
    Ok(())
}
