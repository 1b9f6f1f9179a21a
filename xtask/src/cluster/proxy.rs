//! The Service proxies: Tandem by its manifests, as a user would install it,
//! and kube-proxy as a process of its nodes.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    addresses,
    credentials::API_PORT,
    kubectl::Kubectl,
    node::{Nodes, PROXY_LABEL},
    place::{Hierarchy, Place, hierarchies},
    process,
    spec::{Proxy, Spec},
};
use crate::{cache, workspace};

/// The name that the manifests ask for.
pub(crate) const IMAGE: &str = concat!("localhost/tandem:", env!("CARGO_PKG_VERSION"));
const READY_LIMIT: Duration = Duration::from_mins(4);

pub(crate) fn start(
    place: &Place,
    spec: &Spec,
    nodes: &Nodes<'_>,
    kubectl: &Kubectl<'_>,
) -> Result<()> {
    for (number, proxy) in spec.nodes() {
        if proxy.mode().is_some() {
            start_kube_proxy(place, nodes, number)?;
        }
    }
    if spec.nodes.contains(&Proxy::Tandem) {
        let folder = manifests(place, spec)?;
        crate::exec::output(
            kubectl
                .command()
                .args(["apply", "--kustomize"])
                .arg(&folder),
        )?;
        kubectl.rolled_out("daemonset/tandem", READY_LIMIT)?;
    }
    Ok(())
}

fn start_kube_proxy(place: &Place, nodes: &Nodes<'_>, number: u8) -> Result<()> {
    let folder = place.node(number);
    let mut command = nodes.enter(number, "kube-proxy")?;
    command.arg("--config").arg(folder.join("kube-proxy.json"));
    process::start(&command, &folder.join("log/kube-proxy.log"))?;
    Ok(())
}

/// A copy of the manifests, and a layer over them with what is this cluster's.
fn manifests(place: &Place, spec: &Spec) -> Result<std::path::PathBuf> {
    let folder = place.file("manifests");
    copy(&workspace::root().join("manifests"), &folder.join("base"))?;
    let layer = layer(spec, &cgroup_root(&hierarchies()?)).to_string();
    fs::write(folder.join("kustomization.yaml"), layer).context("write the manifests")?;
    Ok(folder)
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    cache::create(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry.with_context(|| format!("read {}", from.display()))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}

/// Where the agent's container finds the host's control groups of the second
/// version.
fn cgroup_root(hierarchies: &[Hierarchy]) -> String {
    let point = hierarchies
        .iter()
        .find(|hierarchy| hierarchy.kind == "cgroup2")
        .map_or(Path::new("/sys/fs/cgroup"), |hierarchy| &hierarchy.point);
    let below = point
        .strip_prefix("/sys/fs/cgroup")
        .unwrap_or(Path::new(""));
    let path = Path::new("/host/cgroup").join(below);
    path.display().to_string().trim_end_matches('/').to_owned()
}

fn layer(spec: &Spec, cgroup_root: &str) -> Value {
    let server = addresses::control_plane(spec.families.first);
    let selector = format!(
        "/spec/template/spec/nodeSelector/{}",
        PROXY_LABEL.replace('/', "~1")
    );
    let patch = json!([{"op": "add", "path": selector, "value": Proxy::Tandem}]);
    json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "kube-system",
        "resources": ["base"],
        // One of the tests wants kube-proxy's settings of connection tracking.
        "components": ["base/components/conntrack"],
        "configMapGenerator": [{
            "name": "tandem",
            "behavior": "merge",
            "literals": [
                format!("KUBERNETES_SERVICE_HOST={server}"),
                format!("KUBERNETES_SERVICE_PORT={API_PORT}"),
                format!("TANDEM_CGROUP_ROOT={cgroup_root}"),
            ],
        }],
        "patches": [{"target": {"kind": "DaemonSet"}, "patch": patch.to_string()}],
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cluster::spec::Cni;

    #[rstest]
    #[case::beside_the_first_version("/sys/fs/cgroup/unified", "/host/cgroup/unified")]
    #[case::alone("/sys/fs/cgroup", "/host/cgroup")]
    fn the_agent_finds_the_second_version_of_control_groups(
        #[case] point: &str,
        #[case] expected: &str,
    ) {
        let (point, kind) = (point.into(), "cgroup2".to_owned());
        assert_eq!(cgroup_root(&[Hierarchy { point, kind }]), expected);
    }

    #[test]
    fn agents_run_on_tandems_nodes_only() {
        let families = "ipv6".parse().unwrap();
        let spec = Spec::new(1, families, Cni::Ptp, Proxy::Tandem, &[]).unwrap();
        let layer = layer(&spec, "/host/cgroup");
        let literals = &layer["configMapGenerator"][0]["literals"];
        assert_eq!(literals[0], "KUBERNETES_SERVICE_HOST=fd00:30::a");
        let patch: Value =
            serde_json::from_str(layer["patches"][0]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(patch[0]["value"], "tandem");
        assert_eq!(
            patch[0]["path"],
            "/spec/template/spec/nodeSelector/tandem-cluster~1proxy"
        );
    }
}
