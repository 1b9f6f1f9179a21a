//! Nodes that go down and come back.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    load::{self, Connections},
    objects,
    scene::{Client, Scene, client_of, of_family, same, url},
};
use crate::cluster::{
    addresses, control_plane, place::node_name, process::eventually, spec::Family,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// Servers on all nodes, a client on the first, and Services that tell where their
/// servers are.
fn prepare(scene: &Scene<'_>) -> Result<()> {
    let both = json!({"ipFamilyPolicy": "RequireDualStack"});
    let local = json!({
        "ipFamilyPolicy": "RequireDualStack",
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local",
    });
    let mut near = objects::service("echo", "LoadBalancer", &local);
    near["metadata"]["name"] = "near".into();
    scene.apply(&[objects::service("echo", "LoadBalancer", &both), near])?;
    scene.apply_ready(&[objects::servers("echo"), objects::client("client", 1)])?;
    serves(scene)
}

/// Every node serves by all frontends, in both families.
fn serves(scene: &Scene<'_>) -> Result<()> {
    let inside = scene.cluster_ips("echo")?;
    let node_port = scene.node_port("echo")?;
    for family in BOTH {
        let cluster_ip = of_family(&inside, family)?;
        let mut answered = std::collections::BTreeSet::new();
        scene.eventually("endpoints of both nodes", |scene| {
            let url = url(cluster_ip, 80, "hostname");
            answered.insert(scene.ask(Client::Pod("client"), &url)?);
            ensure!(answered.len() == 2, "these answered: {answered:?}");
            Ok(())
        })?;
        for (node, _) in scene.spec.nodes() {
            let node = addresses::node(family, node);
            scene.ask(Client::Outside, &url(node, node_port, "hostname"))?;
        }
        let near = of_family(&scene.load_balancer("near")?, family)?;
        let client = scene.ask(Client::Outside, &url(near, 80, "clientip"))?;
        same(
            "the client",
            &client_of(&client)?,
            &addresses::outside(family),
        )?;
    }
    Ok(())
}

fn reboot(scene: &Scene<'_>, node: u8) -> Result<()> {
    scene.nodes.kill(node)?;
    scene.nodes.boot(node)
}

/// The containers of a node's pods, each with whether it is ready.
fn containers(scene: &Scene<'_>, node: u8) -> Result<BTreeMap<String, bool>> {
    let selector = format!("--field-selector=spec.nodeName={}", node_name(node));
    let path = "--output=jsonpath={range .items[*].status.containerStatuses[*]}\
                {.containerID}={.ready} {end}";
    let text = scene
        .kubectl
        .output(&["get", "pods", "--all-namespaces", &selector, path])?;
    let words = text.split_whitespace();
    Ok(words
        .filter_map(|word| word.split_once('='))
        .map(|(container, ready)| (container.to_owned(), ready == "true"))
        .collect())
}

/// Waits until a node has other containers than before, and all are ready.
fn back(scene: &Scene<'_>, node: u8, before: &BTreeMap<String, bool>) -> Result<()> {
    eventually("the node", Duration::from_mins(3), || {
        let now = containers(scene, node)?;
        ensure!(
            now.keys().all(|container| !before.contains_key(container)),
            "containers of before are there"
        );
        ensure!(now.values().all(|ready| *ready), "not all is ready");
        ensure!(
            now.len() == before.len(),
            "{} of {} are there",
            now.len(),
            before.len()
        );
        Ok(())
    })
}

pub(super) fn a_node_reboots(scene: &Scene<'_>) -> Result<()> {
    prepare(scene)?;
    let (loads, before) = (near_loads(scene)?, containers(scene, 2)?);
    reboot(scene, 2)?;
    back(scene, 2, &before)?;
    serves(scene)?;
    loads.into_iter().try_for_each(|load| load.finish(100))
}

/// Requests to the first node's own server, which have nothing to do with the
/// second node.
fn near_loads(scene: &Scene<'_>) -> Result<Vec<load::Load>> {
    let addresses = scene.cluster_ips("near")?;
    addresses
        .into_iter()
        .map(|address| {
            let url = url(address, 80, "hostname");
            scene.ask(Client::Pod("client"), &url)?;
            load::from_pod(scene, "client", &url, Connections::New)
        })
        .collect()
}

pub(super) fn a_node_reboots_without_api_server(scene: &Scene<'_>) -> Result<()> {
    prepare(scene)?;
    let (loads, before) = (near_loads(scene)?, containers(scene, 2)?);
    control_plane::stop_api_server(scene.place)?;
    let result = without_api_server(scene);
    control_plane::start_api_server(scene.place, scene.spec, &scene.kubectl)?;
    result?;
    back(scene, 2, &before)?;
    serves(scene)?;
    loads.into_iter().try_for_each(|load| load.finish(100))
}

fn without_api_server(scene: &Scene<'_>) -> Result<()> {
    reboot(scene, 2)?;
    scene.eventually("kubelet", |scene| scene.in_node(2, "pidof kubelet"))?;
    Ok(())
}
