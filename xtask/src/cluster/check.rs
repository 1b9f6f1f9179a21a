//! `check`: a Service with an endpoint on each node is asked from a pod, from a
//! node and from outside, by its cluster IP, its name, the NodePort of every node
//! and its load balancer's addresses, in each family.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    addresses,
    images::AGNHOST,
    kubectl::Kubectl,
    place::{OUTSIDE, Place},
    process::eventually,
    spec::{Cni, Proxy, Spec},
};
use crate::exec;

const NAMESPACE: &str = "tandem-check";
const READY_LIMIT: Duration = Duration::from_mins(2);
/// How long until every way works that will.
const WAY_LIMIT: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Client {
    Pod,
    /// A process of the first node.
    Node,
    Outside,
}

/// What the Service is asked by.
#[derive(Default)]
struct Frontends {
    cluster_ips: Vec<IpAddr>,
    node_port: u16,
    load_balancer: Vec<IpAddr>,
}

/// A question, and what it is for.
struct Way {
    client: Client,
    what: String,
    url: String,
}

pub(crate) fn run(place: &Place, kubectl: &Kubectl<'_>) -> Result<()> {
    place.running()?;
    let spec = Spec::read(&place.spec())?;
    kubectl.apply("check", &objects())?;
    eventually("pods of the check", READY_LIMIT, || {
        for pods in ["pods --selector=app=echo", "pod/client", "pod/host-client"] {
            let mut arguments = vec!["--namespace", NAMESPACE, "wait"];
            arguments.extend(pods.split(' '));
            arguments.extend(["--for=condition=Ready", "--timeout=10s"]);
            kubectl.output(&arguments)?;
        }
        Ok(())
    })?;
    let frontends = frontends(&spec, kubectl)?;
    let mut failed = 0;
    for way in ways(&spec, &frontends) {
        let mut answered = BTreeSet::new();
        let result = eventually("the way", WAY_LIMIT, || {
            answered = ask(place, kubectl, &way)?;
            Ok(())
        });
        let Way { client, what, url } = way;
        match result {
            Ok(()) => println!("{client:?} to {what}, {url}: {} endpoints", answered.len()),
            Err(error) => {
                failed += 1;
                println!("{client:?} to {what}, {url}: FAILED: {error:#}");
            }
        }
    }
    kubectl.output(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    ensure!(failed == 0, "{failed} ways do not work");
    Ok(())
}

fn ways(spec: &Spec, frontends: &Frontends) -> Vec<Way> {
    let url = |address, port| format!("http://{}/hostname", SocketAddr::new(address, port));
    let mut ways = Vec::new();
    let mut add = |client, what: &str, url: String| {
        let what = what.to_owned();
        ways.push(Way { client, what, url });
    };
    for client in [Client::Pod, Client::Node] {
        for address in &frontends.cluster_ips {
            add(client, "a cluster IP", url(*address, 80));
        }
    }
    for client in [Client::Pod, Client::Node, Client::Outside] {
        for address in &frontends.load_balancer {
            add(client, "a load balancer", url(*address, 80));
        }
    }
    add(Client::Pod, "a name", "http://echo/hostname".to_owned());
    for family in spec.families.list() {
        for client in [Client::Pod, Client::Node, Client::Outside] {
            for (number, proxy) in spec.nodes() {
                if proxy != Proxy::None {
                    let address = addresses::node(family, number);
                    add(client, "a NodePort", url(address, frontends.node_port));
                }
            }
        }
    }
    // Nothing on the way to them knows Services.
    if spec.cni == Cni::Macvlan {
        ways.retain(|way| way.client != Client::Outside);
    }
    ways
}

/// Asks several times and returns the names of the endpoints that answered.
fn ask(place: &Place, kubectl: &Kubectl<'_>, way: &Way) -> Result<BTreeSet<String>> {
    let script = format!(
        "for i in 1 2 3 4 5 6; do curl --silent --fail --max-time 3 {} || exit 1; echo; done",
        way.url
    );
    let mut command = match way.client {
        Client::Outside => place.at(OUTSIDE, "sh"),
        Client::Pod | Client::Node => {
            let pod = if way.client == Client::Pod {
                "client"
            } else {
                "host-client"
            };
            let mut command = kubectl.command();
            command.args(["--namespace", NAMESPACE, "exec", pod, "--", "sh"]);
            command
        }
    };
    let answers = exec::output(command.args(["-c", &script]))?;
    Ok(answers.lines().map(str::to_owned).collect())
}

fn frontends(spec: &Spec, kubectl: &Kubectl<'_>) -> Result<Frontends> {
    let field = |path: &str| {
        let output = format!("--output=jsonpath={{{path}}}");
        kubectl.output(&["--namespace", NAMESPACE, "get", "service", "echo", &output])
    };
    let addresses = |path: &str| -> Result<Vec<IpAddr>> {
        let words = field(path)?;
        words
            .split_whitespace()
            .map(|word| {
                word.parse()
                    .with_context(|| format!("{word} is no address"))
            })
            .collect()
    };
    let mut load_balancer = Vec::new();
    eventually("an address of the load balancer", WAY_LIMIT, || {
        load_balancer = addresses(".status.loadBalancer.ingress[*].ip")?;
        ensure!(
            load_balancer.len() == spec.families.list().count(),
            "there is {load_balancer:?}"
        );
        Ok(())
    })?;
    let node_port = field(".spec.ports[0].nodePort")?;
    Ok(Frontends {
        cluster_ips: addresses(".spec.clusterIPs[*]")?,
        node_port: node_port
            .parse()
            .with_context(|| format!("{node_port} is no port"))?,
        load_balancer,
    })
}

fn objects() -> Vec<Value> {
    let server = pod(&["netexec", "--http-port=8080"], false);
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata("echo"),
            "spec": {
                "selector": {"matchLabels": {"app": "echo"}},
                "template": {"metadata": {"labels": {"app": "echo"}}, "spec": server},
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata("echo"),
            "spec": {
                "type": "LoadBalancer",
                "ipFamilyPolicy": "PreferDualStack",
                "selector": {"app": "echo"},
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        }),
        client("client", false),
        client("host-client", true),
    ]
}

fn client(name: &str, host_network: bool) -> Value {
    let mut spec = pod(&["pause"], host_network);
    spec["nodeName"] = "node-1".into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(name), "spec": spec})
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "namespace": NAMESPACE})
}

fn pod(arguments: &[&str], host_network: bool) -> Value {
    json!({
        "hostNetwork": host_network,
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "agnhost", "image": AGNHOST, "args": arguments}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(families: &str, others: &str) -> Spec {
        let others = [others.parse().unwrap()];
        Spec::new(
            2,
            families.parse().unwrap(),
            Cni::Ptp,
            Proxy::Tandem,
            &others,
        )
        .unwrap()
    }

    #[test]
    fn every_nodes_node_port_is_asked_from_everywhere() {
        let spec = spec("ipv4,ipv6", "nftables=1");
        let frontends = Frontends {
            node_port: 30080,
            ..Frontends::default()
        };
        let urls: Vec<_> = ways(&spec, &frontends)
            .into_iter()
            .map(|way| way.url)
            .collect();
        for url in [
            "http://172.30.0.12:30080/hostname",
            "http://[fd00:30::b]:30080/hostname",
        ] {
            assert_eq!(
                urls.iter().filter(|other| *other == url).count(),
                3,
                "{urls:?}"
            );
        }
    }

    #[test]
    fn nodes_without_a_proxy_are_asked_nothing() {
        let urls = ways(&spec("ipv6", "none=1"), &Frontends::default());
        assert!(urls.iter().all(|way| !way.url.contains("fd00:30::c")));
    }
}
