//! What a test works with: a namespace of its own in a cluster, and the ways to ask
//! from pods, from nodes and from outside.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    cache::Cache,
    cluster::{
        kubectl::Kubectl,
        node::Nodes,
        place::{OUTSIDE, Place},
        process,
        spec::{Family, Spec},
    },
    exec,
};

const READY_LIMIT: Duration = Duration::from_mins(3);
/// How long what has changed may take to work everywhere.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Scene<'a> {
    pub(super) cache: &'a Cache,
    pub(super) place: &'a Place,
    pub(super) spec: &'a Spec,
    pub(super) kubectl: Kubectl<'a>,
    pub(super) nodes: Nodes<'a>,
    pub(super) namespace: String,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client<'a> {
    Pod(&'a str),
    Outside,
}

impl<'a> Scene<'a> {
    pub(super) fn new(
        cache: &'a Cache,
        place: &'a Place,
        spec: &'a Spec,
        programs: &'a [PathBuf],
        name: &str,
    ) -> Self {
        Self {
            cache,
            place,
            spec,
            kubectl: crate::cluster::kubectl(cache, place),
            nodes: Nodes {
                place,
                spec,
                programs,
            },
            namespace: name.replace('_', "-"),
        }
    }

    pub(super) fn create(&self) -> Result<()> {
        // What an aborted run left.
        self.remove()?;
        self.kubectl
            .output(&["create", "namespace", &self.namespace])?;
        Ok(())
    }

    pub(super) fn remove(&self) -> Result<()> {
        self.kubectl.output(&[
            "delete",
            "namespace",
            &self.namespace,
            "--ignore-not-found",
            "--timeout=120s",
        ])?;
        Ok(())
    }

    /// Runs kubectl in the test's namespace.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let namespace = ["--namespace", &self.namespace];
        self.kubectl.output(&[&namespace, arguments].concat())
    }

    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let mut objects = objects.to_vec();
        for object in &mut objects {
            object["metadata"]["namespace"] = self.namespace.as_str().into();
        }
        self.kubectl.apply(&self.namespace, &objects)
    }

    pub(super) fn ready(&self, workload: &str) -> Result<()> {
        let condition = match workload.split_once('/') {
            Some(("pod", _)) => vec!["wait", "--for=condition=Ready", "--timeout=5s"],
            _ => vec!["rollout", "status", "--timeout=5s"],
        };
        process::eventually(workload, READY_LIMIT, || {
            self.kubectl(&[&condition[..], &[workload]].concat())?;
            Ok(())
        })
    }

    /// Applies objects and waits until all pods of those with pods are ready.
    pub(super) fn apply_ready(&self, objects: &[Value]) -> Result<()> {
        self.apply(objects)?;
        for object in objects {
            let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
            if matches!(kind.as_str(), "pod" | "daemonset" | "deployment") {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                self.ready(&format!("{kind}/{name}"))?;
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, object: &str) -> Result<Value> {
        let text = self.kubectl(&["get", object, "--output=json"])?;
        serde_json::from_str(&text).context("understand kubectl")
    }

    pub(super) fn patch(&self, object: &str, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        self.kubectl(&["patch", object, "--type=merge", "--patch", &patch])?;
        Ok(())
    }

    /// Returns what a shell script says, wherever it runs.
    pub(super) fn shell(&self, client: Client<'_>, script: &str) -> Result<String> {
        let mut command = match client {
            Client::Outside => self.place.at(OUTSIDE, "bash"),
            Client::Pod(pod) => {
                let mut command = self.kubectl.command();
                command.args(["--namespace", &self.namespace, "exec", pod, "--", "bash"]);
                command
            }
        };
        exec::output(command.args(["-c", script]))
    }

    /// Returns what a shell script says in a node.
    pub(super) fn in_node(&self, node: u8, script: &str) -> Result<String> {
        exec::output(self.nodes.enter(node, "bash")?.args(["-c", script]))
    }

    pub(super) fn eventually<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        let mut value = None;
        process::eventually(what, LIMIT, || {
            value = Some(attempt(self)?);
            Ok(())
        })?;
        value.context("nothing came of it")
    }

    /// Asks until there is an answer, which it returns.
    pub(super) fn ask(&self, client: Client<'_>, url: &str) -> Result<String> {
        self.eventually(&format!("{client:?} to {url}"), |scene| {
            scene.shell(
                client,
                &format!("curl --silent --fail --show-error --max-time 3 {url}"),
            )
        })
    }

    /// Waits until nobody is there to ask: the connection is refused.
    pub(super) fn refused(&self, client: Client<'_>, url: &str) -> Result<()> {
        let script = format!("curl --silent --max-time 5 {url}; [ $? = 7 ]");
        self.eventually(&format!("{client:?} refused by {url}"), |scene| {
            scene.shell(client, &script)
        })?;
        Ok(())
    }

    /// Waits until there is no answer, whatever becomes of the question.
    pub(super) fn unanswered(&self, client: Client<'_>, url: &str) -> Result<()> {
        let script = format!("! curl --silent --max-time 2 {url}");
        self.eventually(&format!("{client:?} unanswered by {url}"), |scene| {
            scene.shell(client, &script)
        })?;
        Ok(())
    }

    /// The cluster IPs of a Service.
    pub(super) fn cluster_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let service = self.get(&format!("service/{service}"))?;
        Ok(parsed(
            service["spec"]["clusterIPs"]
                .as_array()
                .into_iter()
                .flatten(),
        ))
    }

    /// The addresses of a Service's load balancer, of each of its families.
    pub(super) fn load_balancer(&self, name: &str) -> Result<Vec<IpAddr>> {
        self.eventually(&format!("a load balancer of {name}"), |scene| {
            let service = scene.get(&format!("service/{name}"))?;
            let ingress = &service["status"]["loadBalancer"]["ingress"];
            let ingress = ingress.as_array().into_iter().flatten();
            let addresses = parsed(ingress.map(|ingress| &ingress["ip"]));
            let families = service["spec"]["ipFamilies"].as_array().map_or(0, Vec::len);
            ensure!(addresses.len() == families, "there is {addresses:?}");
            Ok(addresses)
        })
    }

    pub(super) fn node_port(&self, service: &str) -> Result<u16> {
        let service = self.get(&format!("service/{service}"))?;
        let port = service["spec"]["ports"][0]["nodePort"].as_u64();
        let port = port.context("the Service has no NodePort")?;
        port.try_into().context("an odd NodePort")
    }

    /// The address of a pod in a family.
    pub(super) fn pod_ip(&self, pod: &str, family: Family) -> Result<IpAddr> {
        let pod = self.get(&format!("pod/{pod}"))?;
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        of_family(&parsed(addresses.map(|address| &address["ip"])), family)
    }

    /// Lets containerd give new pods of a node addresses of these families only, or
    /// of all again.
    pub(super) fn limit_pods(&self, node: u8, families: &str) -> Result<()> {
        let limited = Spec {
            families: families.parse()?,
            ..self.spec.clone()
        };
        let plugins = crate::cluster::config::plugins(&limited, node);
        let script = format!(
            "cat >/run/cni/net.d/next <<'END'\n{plugins}\nEND\n\
             mv /run/cni/net.d/next /run/cni/net.d/pods.conflist"
        );
        self.in_node(node, &script)?;
        Ok(())
    }

    /// Does something with a pod of a node that has addresses of these families only.
    pub(super) fn with_pods_of(
        &self,
        node: u8,
        families: &str,
        pod: &Value,
        action: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        self.limit_pods(node, families)?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let delete = || self.kubectl(&["delete", "pod", name, "--ignore-not-found"]);
        // containerd takes a moment to read the list of plugins.
        let result = self
            .eventually("a pod of these families", |scene| {
                scene.apply_ready(std::slice::from_ref(pod))?;
                let addresses = scene.get(&format!("pod/{name}"))?;
                let count = addresses["status"]["podIPs"].as_array().map_or(0, Vec::len);
                if count != families.split(',').count() {
                    delete()?;
                    bail!("the pod has {count} addresses");
                }
                Ok(())
            })
            .and_then(|()| action(self));
        delete()?;
        result
    }
}
/// Returns the address of this family.
pub(super) fn of_family(addresses: &[IpAddr], family: Family) -> Result<IpAddr> {
    let found = addresses
        .iter()
        .find(|address| Family::of(**address) == family);
    found
        .copied()
        .with_context(|| format!("none of {addresses:?} is IPv{}", family.digit()))
}

pub(super) fn url(address: IpAddr, port: u16, path: &str) -> String {
    format!("http://{}/{path}", SocketAddr::new(address, port))
}

/// Returns the address of a client, as `ADDRESS:PORT` names it.
pub(super) fn client_of(answer: &str) -> Result<IpAddr> {
    let client: SocketAddr = answer
        .trim()
        .parse()
        .with_context(|| format!("{answer} is no client"))?;
    Ok(client.ip().to_canonical())
}

fn parsed<'v>(values: impl Iterator<Item = &'v Value>) -> Vec<IpAddr> {
    values
        .filter_map(|value| value.as_str()?.parse().ok())
        .collect()
}

/// Fails unless all of the values are this one.
pub(super) fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    wanted: &T,
) -> Result<()> {
    if found != wanted {
        bail!("{what} is {found:?}, not {wanted:?}");
    }
    Ok(())
}
