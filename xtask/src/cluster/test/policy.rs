//! An engine of network policies beside the proxy: its rules see clients and servers
//! by their own addresses, whatever these were asked by.

use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    objects,
    scene::{Client, Scene, of_family, url},
};
use crate::cluster::{addresses, place::node_name, programs::KUBE_ROUTER, spec::Family};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// kube-router on all nodes, for policies alone, in IPv4.
struct Engine(Vec<Child>);

impl Engine {
    fn start(scene: &Scene<'_>) -> Result<Self> {
        let program = KUBE_ROUTER.ensure(scene.cache)?.join("kube-router");
        let kubeconfig = scene.place.file("credentials/admin.kubeconfig");
        let range = addresses::services(Family::V4);
        let mut engine = Self(Vec::new());
        for (node, _) in scene.spec.nodes() {
            let log = scene.place.node(node).join("log/kube-router.log");
            let log = std::fs::File::create(log).context("make a log")?;
            let mut command = scene.nodes.enter(node, &program)?;
            command
                .args(["--run-firewall=true", "--run-router=false"])
                .args(["--run-service-proxy=false", "--enable-ipv6=false"])
                .args(["--metrics-port=0", "--health-port=0"])
                .arg(format!("--hostname-override={}", node_name(node)))
                .arg(format!("--service-cluster-ip-range={range}"))
                .arg("--kubeconfig")
                .arg(&kubeconfig)
                .stdin(Stdio::null())
                .stdout(log.try_clone().context("share the log")?)
                .stderr(log);
            engine.0.push(command.spawn().context("start kube-router")?);
        }
        Ok(engine)
    }
}

/// Ends kube-router on all nodes, with all rules of filters.
fn stop(scene: &Scene<'_>) -> Result<()> {
    for (node, _) in scene.spec.nodes() {
        scene.in_node(
            node,
            "kill $(pidof kube-router)\n\
             iptables -w -F; iptables -w -X\n\
             ip6tables -w -F; ip6tables -w -X",
        )?;
    }
    Ok(())
}

impl Drop for Engine {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The policy in IPv6, as rules of the server's node: this kube-router names sets of
/// addresses without the prefix that it gives those of IPv6, and then makes no rules.
fn rules(scene: &Scene<'_>) -> Result<String> {
    let server = scene.pod_ip("echo", Family::V6)?;
    let friend = scene.pod_ip("friend", Family::V6)?;
    let outside = addresses::outside(Family::V6);
    let rules = [
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
        format!("-s {friend} -j ACCEPT"),
        format!("-s {outside} -j ACCEPT"),
        "-j DROP".to_owned(),
    ]
    .map(|rule| format!("ip6tables -w -A ECHO {rule}\n"))
    .concat();
    Ok(format!(
        "set -e\nip6tables -w -N ECHO\n{rules}ip6tables -w -I FORWARD -d {server} -j ECHO"
    ))
}

/// Those of this label, and the host outside, may ask `echo`.
fn policy() -> Value {
    let outside = BOTH.map(|family| {
        let length = if family == Family::V4 { 32 } else { 128 };
        json!({"ipBlock": {"cidr": format!("{}/{length}", addresses::outside(family))}})
    });
    let pods = json!({"podSelector": {"matchLabels": {"app": "friend"}}});
    let from: Vec<_> = [pods].into_iter().chain(outside).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "echo"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "echo"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": from}],
        },
    })
}

pub(super) fn network_policies_see_real_addresses(scene: &Scene<'_>) -> Result<()> {
    let both = json!({"ipFamilyPolicy": "RequireDualStack"});
    let local = json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local"});
    let mut near = objects::service("echo", "LoadBalancer", &local);
    near["metadata"]["name"] = "local".into();
    scene.apply(&[objects::service("echo", "ClusterIP", &both), near])?;
    scene.apply_ready(&[
        objects::server("echo", 2),
        objects::client("friend", 1),
        objects::client("stranger", 1),
    ])?;
    let stranger = Client::Pod("stranger");
    for address in scene.cluster_ips("echo")? {
        scene.ask(stranger, &url(address, 80, "hostname"))?;
    }
    let _engine = Engine::start(scene)?;
    let result = scene
        .apply(&[policy()])
        .and_then(|()| scene.in_node(2, &rules(scene)?).map(drop))
        .and_then(|()| {
            BOTH.into_iter()
                .try_for_each(|family| verdicts(scene, family))
        });
    stop(scene)?;
    result
}

fn verdicts(scene: &Scene<'_>, family: Family) -> Result<()> {
    let (friend, stranger) = (Client::Pod("friend"), Client::Pod("stranger"));
    let cluster_ip = url(
        of_family(&scene.cluster_ips("echo")?, family)?,
        80,
        "hostname",
    );
    scene.unanswered(stranger, &cluster_ip)?;
    scene.ask(friend, &cluster_ip)?;
    let pod = url(scene.pod_ip("echo", family)?, objects::PORT, "hostname");
    scene.unanswered(stranger, &pod)?;
    scene.ask(friend, &pod)?;
    let local = of_family(&scene.load_balancer("local")?, family)?;
    scene.ask(Client::Outside, &url(local, 80, "hostname"))?;
    scene.unanswered(stranger, &url(local, 80, "hostname"))?;
    scene.ask(friend, &url(local, 80, "hostname"))?;
    Ok(())
}
