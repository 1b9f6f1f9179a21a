//! What changes in a cluster that runs, under requests of which none may be lost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    load::{self, Connections, Load},
    objects,
    scene::{Client, Scene, of_family, url},
};
use crate::cluster::{place::node_name, process::eventually, proxy, spec::Family};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// How many requests there are before something changes, and after it.
const SOME: usize = 40;

/// Servers behind a Service, and requests to it: of each family, from a pod and from
/// outside.
fn under_load(scene: &Scene<'_>, kinds: &[Connections]) -> Result<Vec<Load>> {
    let both = json!({"ipFamilyPolicy": "RequireDualStack"});
    scene.apply(&[objects::service("echo", "LoadBalancer", &both)])?;
    scene.apply_ready(&[objects::deployment("echo", 4), objects::client("client", 1)])?;
    let (inside, outside) = (scene.cluster_ips("echo")?, scene.load_balancer("echo")?);
    let mut loads = Vec::new();
    for family in BOTH {
        let inside = url(of_family(&inside, family)?, 80, "hostname");
        let outside = url(of_family(&outside, family)?, 80, "hostname");
        scene.ask(Client::Pod("client"), &inside)?;
        scene.ask(Client::Outside, &outside)?;
        for kind in kinds {
            loads.push(load::from_pod(scene, "client", &inside, *kind)?);
            loads.push(load::from_outside(scene, &outside, *kind)?);
        }
    }
    more_answers(scene, &loads)?;
    Ok(loads)
}

/// Waits until there were more answers to each.
fn more_answers(scene: &Scene<'_>, loads: &[Load]) -> Result<()> {
    let before = loads
        .iter()
        .map(Load::answered)
        .collect::<Result<Vec<_>>>()?;
    for (load, before) in loads.iter().zip(before) {
        scene.eventually("answers", |_| {
            ensure!(
                load.answered()? >= before + SOME,
                "there are too few answers"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn nothing_is_lost(scene: &Scene<'_>, loads: Vec<Load>) -> Result<()> {
    more_answers(scene, &loads)?;
    loads.into_iter().try_for_each(|load| load.finish(2 * SOME))
}

pub(super) fn a_rollout_loses_nothing(scene: &Scene<'_>) -> Result<()> {
    const NEXT: &str = "localhost/tandem:next";
    for (node, _) in scene.spec.nodes() {
        let image = proxy::IMAGE;
        scene.in_node(
            node,
            &format!("ctr --namespace k8s.io images tag --force {image} {NEXT}"),
        )?;
    }
    let loads = under_load(scene, &[Connections::New, Connections::Kept])?;
    for image in [NEXT, proxy::IMAGE] {
        let container = format!("proxy-agent={image}");
        scene.kubectl.output(&[
            "--namespace=kube-system",
            "set",
            "image",
            "daemonset/tandem",
            &container,
        ])?;
        scene
            .kubectl
            .rolled_out("daemonset/tandem", Duration::from_mins(3))?;
        // The new agents hear of what is new.
        let name = if image == NEXT { "first" } else { "second" };
        let both = json!({"ipFamilyPolicy": "RequireDualStack"});
        let mut service = objects::service("echo", "ClusterIP", &both);
        service["metadata"]["name"] = name.into();
        scene.apply(&[service])?;
        for address in scene.cluster_ips(name)? {
            scene.ask(Client::Pod("client"), &url(address, 80, "hostname"))?;
        }
    }
    nothing_is_lost(scene, loads)
}

pub(super) fn a_drained_node_loses_nothing(scene: &Scene<'_>) -> Result<()> {
    let loads = under_load(scene, &[Connections::New])?;
    let node = node_name(2);
    let drained = scene
        .kubectl
        .output(&[
            "drain",
            &node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            "--timeout=120s",
        ])
        .and_then(|_| scene.ready("deployment/echo"));
    scene.kubectl.output(&["uncordon", &node])?;
    drained?;
    scene.kubectl(&["rollout", "restart", "deployment/echo"])?;
    scene.ready("deployment/echo")?;
    scene
        .kubectl
        .rolled_out("deployment/coredns", Duration::from_mins(2))?;
    nothing_is_lost(scene, loads)
}

/// How many pods come and go on a node: as many as a kubelet has room for beside
/// those that are there, and this machine for in a minute.
const MANY: u8 = 50;

pub(super) fn many_pods_come_and_go(scene: &Scene<'_>) -> Result<()> {
    let loads = under_load(scene, &[Connections::New])?;
    let start = Instant::now();
    let mut many = objects::deployment("many", MANY);
    let pod = &mut many["spec"]["template"]["spec"];
    pod["nodeSelector"] = json!({"kubernetes.io/hostname": node_name(2)});
    pod["terminationGracePeriodSeconds"] = 1.into();
    // Their start is measured, not that of probes.
    pod["containers"][0]["readinessProbe"] = serde_json::Value::Null;
    let both = json!({"ipFamilyPolicy": "RequireDualStack"});
    scene.apply(&[objects::service("many", "ClusterIP", &both), many])?;
    scene.ready("deployment/many")?;
    let started = start.elapsed();
    for address in scene.cluster_ips("many")? {
        let mut answered = std::collections::BTreeSet::new();
        let url = url(address, 80, "hostname");
        let script = format!(
            "for i in $(seq 100); do curl --silent --fail --max-time 3 {url} || exit 1; echo; done"
        );
        scene.eventually("answers of all pods", |scene| {
            let answers = scene.shell(Client::Pod("client"), &script)?;
            answered.extend(answers.lines().map(str::to_owned));
            ensure!(
                answered.len() == usize::from(MANY),
                "{} pods answered",
                answered.len()
            );
            Ok(())
        })?;
    }
    let start = Instant::now();
    scene.kubectl(&["scale", "deployment/many", "--replicas=0"])?;
    eventually("the end of all pods", Duration::from_mins(3), || {
        let left = scene.kubectl(&["get", "pods", "--selector=app=many", "--output=name"])?;
        ensure!(left.is_empty(), "{} pods are left", left.lines().count());
        Ok(())
    })?;
    println!(
        "  {MANY} pods: there after {} s, gone after {} s",
        started.as_secs(),
        start.elapsed().as_secs()
    );
    for address in scene.cluster_ips("many")? {
        scene.refused(Client::Pod("client"), &url(address, 80, "hostname"))?;
    }
    nothing_is_lost(scene, loads)
}

pub(super) fn restarts_of_kubelet_and_containerd_lose_nothing(scene: &Scene<'_>) -> Result<()> {
    let loads = under_load(scene, &[Connections::New])?;
    for program in ["kubelet", "containerd"] {
        scene.nodes.restart(2, program)?;
        // A pod that starts shows that they work.
        let name = format!("after-{program}");
        scene.apply_ready(&[objects::server(&name, 2)])?;
        let both = json!({"ipFamilyPolicy": "RequireDualStack"});
        scene.apply(&[objects::service(&name, "ClusterIP", &both)])?;
        for address in scene.cluster_ips(&name)? {
            scene.ask(Client::Pod("client"), &url(address, 80, "hostname"))?;
        }
    }
    nothing_is_lost(scene, loads)
}
