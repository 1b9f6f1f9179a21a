//! A node: kubelet and containerd in namespaces of their own, as the script
//! `node.sh` makes them.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    addresses, config,
    credentials::Credentials,
    down,
    kubectl::Kubectl,
    place::{Hierarchy, Place, hierarchies, node_name},
    process,
    spec::{Proxy, Spec},
    underlay,
};
use crate::{cache, exec};

const SCRIPT: &str = include_str!("node.sh");
/// The label by which proxies find their nodes.
pub(crate) const PROXY_LABEL: &str = "tandem-cluster/proxy";
const ZONES: u8 = 3;
/// Images take most of it.
const READY_LIMIT: Duration = Duration::from_mins(8);

pub(crate) struct Nodes<'a> {
    pub(crate) place: &'a Place,
    pub(crate) spec: &'a Spec,
    /// Folders with the programs of nodes.
    pub(crate) programs: &'a [PathBuf],
}

impl Nodes<'_> {
    /// Starts all nodes and waits until they are ready.
    pub(crate) fn start(&self, kubectl: &Kubectl<'_>) -> Result<()> {
        let objects: Vec<_> = self
            .spec
            .nodes()
            .map(|(number, proxy)| object(self.spec, number, proxy))
            .collect();
        kubectl.apply("nodes", &objects)?;
        let mut started = Vec::new();
        for (number, _) in self.spec.nodes() {
            started.push((number, self.launch(number)?));
        }
        self.wait(kubectl, started)
    }

    fn launch(&self, number: u8) -> Result<Child> {
        self.prepare(number, &hierarchies()?)?;
        let mut start = self.command(number)?;
        start.arg("start");
        process::start(&start, &self.log(number))
    }

    /// Ends a node as a loss of power would: with all its namespaces.
    pub(crate) fn kill(&self, number: u8) -> Result<()> {
        let file = self.place.node(number).join("pid");
        let process = fs::read_to_string(&file).context("read the number of the node's process")?;
        exec::output(Command::new("kill").args(["-KILL", process.trim()]))?;
        down::host(self.place, &node_name(number))?;
        fs::remove_file(&file).context("forget the number of the node's process")
    }

    /// Starts a node that was there before, with its disk.
    pub(crate) fn boot(&self, number: u8) -> Result<()> {
        underlay::host(self.place, self.spec, Some(number))?;
        let mut started = self.launch(number)?;
        process::eventually("the node", READY_LIMIT, || {
            process::alive(&node_name(number), &mut started, &self.log(number))?;
            exec::output(self.enter(number, "pidof")?.arg("kubelet"))?;
            Ok(())
        })
    }

    /// Ends kubelet or containerd of a node and starts it anew.
    pub(crate) fn restart(&self, number: u8, program: &str) -> Result<()> {
        let mut restart = self.enter(number, "bash")?;
        restart
            .arg(self.place.node(number).join("node.sh"))
            .args(["restart", program]);
        exec::output(&mut restart).map(drop)
    }

    /// A command in a node, and in its control groups.
    pub(crate) fn enter(&self, number: u8, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = self.command(number)?;
        command.arg("enter").arg(program.as_ref());
        Ok(command)
    }

    /// Where a node says what goes wrong before it has logs of its own.
    fn log(&self, number: u8) -> PathBuf {
        let name = node_name(number);
        self.place.file(&format!("log/{name}.log"))
    }

    fn wait(&self, kubectl: &Kubectl<'_>, mut started: Vec<(u8, Child)>) -> Result<()> {
        let mut ended = Ok(());
        process::eventually("nodes", READY_LIMIT, || {
            for (number, child) in &mut started {
                ended = process::alive(&node_name(*number), child, &self.log(*number));
                if ended.is_err() {
                    return Ok(());
                }
            }
            let path =
                "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].status} {end}";
            let states = kubectl.output(&["get", "nodes", "--output", path])?;
            let ready = states
                .split_whitespace()
                .filter(|state| *state == "True")
                .count();
            ensure!(ready == self.spec.nodes.len(), "{ready} nodes are ready");
            Ok(())
        })?;
        ended
    }

    /// Makes the files of a node, and its control groups.
    fn prepare(&self, number: u8, hierarchies: &[Hierarchy]) -> Result<()> {
        let folder = self.place.node(number);
        for name in ["lib", "log"] {
            cache::create(&folder.join(name))?;
        }
        let credentials = Credentials::of(self.place.folder());
        let kubelet = config::kubelet(self.spec.families, &credentials.authority());
        let mut files = vec![
            ("node.sh", SCRIPT.to_owned()),
            ("kubelet.json", kubelet.to_string()),
            ("containerd.toml", config::containerd()),
            (
                "pods.conflist",
                config::plugins(self.spec, number).to_string(),
            ),
        ];
        if let Some(flannel) = config::flannel(self.spec) {
            files.push(("flannel.json", flannel.to_string()));
        }
        if let Some(mode) = self.spec.proxy(number).mode() {
            let kubeconfig = credentials.kubeconfig("proxy");
            let config = config::kube_proxy(self.spec, number, mode, &kubeconfig);
            files.push(("kube-proxy.json", config.to_string()));
        }
        for (name, text) in files {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        }
        let kubeconfig = credentials.kubeconfig(&node_name(number));
        cache::link(&kubeconfig, &folder.join("kubeconfig"))?;
        let kubeconfig = credentials.kubeconfig("flannel");
        cache::link(&kubeconfig, &folder.join("flannel.kubeconfig"))?;
        for hierarchy in hierarchies {
            let group = self.group(number, hierarchy);
            cache::create(&group)?;
            // In the first version, a group begins without any processor.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if hierarchy.kind.contains("cpuset") {
                    let all = fs::read_to_string(hierarchy.point.join(file))
                        .with_context(|| format!("read {file}"))?;
                    fs::write(group.join(file), all).with_context(|| format!("write {file}"))?;
                }
            }
        }
        Ok(())
    }

    fn group(&self, number: u8, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.point.join(self.place.group(&node_name(number)))
    }

    /// The script of a node, with what it wants to know.
    fn command(&self, number: u8) -> Result<Command> {
        let folder = self.place.node(number);
        let name = node_name(number);
        let hierarchies = hierarchies()?;
        let groups: Vec<_> = hierarchies
            .iter()
            .map(|hierarchy| self.group(number, hierarchy).display().to_string())
            .collect();
        let kinds: Vec<_> = hierarchies
            .iter()
            .map(|Hierarchy { kind, point }| format!("{kind}:{}", point.display()))
            .collect();
        let node_addresses = |family| addresses::node(family, number);
        let mut command = Command::new("bash");
        command
            .arg(folder.join("node.sh"))
            .env("NODE_NAME", &name)
            .env("NODE_NAMESPACE", self.place.namespace(&name))
            .env("NODE_FOLDER", &folder)
            .env("NODE_GROUPS", groups.join(" "))
            .env("NODE_HIERARCHIES", kinds.join(" "))
            .env("NODE_ADDRESSES", self.spec.families.join(node_addresses))
            .env("PATH", self.path()?);
        Ok(command)
    }

    fn path(&self) -> Result<OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let folders = self
            .programs
            .iter()
            .cloned()
            .chain(env::split_paths(&inherited))
            .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
        env::join_paths(folders).context("put the programs on PATH")
    }
}

/// A Node, made before its kubelet comes, so that its pods have the range that
/// the underlay knows. There are three zones at most: tests want several nodes in
/// each.
fn object(spec: &Spec, number: u8, proxy: Proxy) -> Value {
    let name = node_name(number);
    let pods: Vec<_> = spec
        .families
        .list()
        .map(|family| addresses::pods(family, spec.cni, number).to_string())
        .collect();
    let proxy = serde_json::to_value(proxy).unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": format!("zone-{}", (number - 1) % ZONES + 1),
                PROXY_LABEL: proxy,
            },
        },
        "spec": {"podCIDR": pods[0], "podCIDRs": pods},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::spec::Cni;

    #[test]
    fn a_node_comes_with_the_ranges_of_its_pods() {
        let families = "ipv6,ipv4".parse().unwrap();
        let spec = Spec::new(3, families, Cni::Ptp, Proxy::Tandem, &[]).unwrap();
        let node = object(&spec, 2, Proxy::Nftables);
        assert_eq!(node["spec"]["podCIDR"], "fd00:10:244:2::/64");
        assert_eq!(
            node["spec"]["podCIDRs"],
            json!(["fd00:10:244:2::/64", "10.244.2.0/24"])
        );
        assert_eq!(node["metadata"]["labels"][PROXY_LABEL], "nftables");
        assert_eq!(
            node["metadata"]["labels"]["topology.kubernetes.io/zone"],
            "zone-2"
        );
    }
}
