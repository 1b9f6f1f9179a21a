//! Publishes the Service to the agents: in a directory of manifests, or by
//! an API server that `kubectl` talks to.

use std::{fmt::Write, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, Family, Lab, Node,
    addressing::cluster_ip,
    agent::Source,
    eventually,
    kubernetes::{ApiPod, ControlPlane, Namespace},
};

use crate::{
    narrator::{self, Show},
    stage::Stage,
    web::PORT,
};

/// The cluster IPs the manifests give.
const NUMBER: u8 = 80;
/// The Service's port on every node, at the end.
pub(crate) const NODE_PORT: u16 = 30_080;

/// The place where the Service is written.
pub(crate) enum Publisher<'lab> {
    Manifests(&'lab Lab),
    Kubernetes {
        control_plane: &'lab ControlPlane,
        namespace: Namespace<'lab>,
        /// Objects of the backends.
        pods: Vec<ApiPod>,
    },
}

impl<'lab> Publisher<'lab> {
    /// Tells the API server of the backends, if there is one.
    pub(crate) fn new(
        lab: &'lab Lab,
        control_plane: Option<&'lab ControlPlane>,
        stage: &mut Stage,
    ) -> Result<Self> {
        let Some(control_plane) = control_plane else {
            return Ok(Self::Manifests(lab));
        };
        let namespace = Namespace::create(lab, control_plane.kubectl(), "demo")?;
        let backends = stage.backends.drain(..);
        let pods: Vec<_> = backends
            .map(|pod| ApiPod::of(&namespace, pod, "web", &[]))
            .collect();
        namespace.register(pods.iter())?;
        for pod in &pods {
            pod.set_ready(true)?;
        }
        Ok(Self::Kubernetes {
            control_plane,
            namespace,
            pods,
        })
    }

    /// Returns the options of a node's agent.
    pub(crate) fn agent_options(&self, node: &Node) -> Result<AgentOptions> {
        let source = match self {
            Self::Manifests(_) => Source::Manifests,
            Self::Kubernetes { control_plane, .. } => {
                // One node over each family.
                let family = Family::BOTH[usize::from(node.index() + 1) % 2];
                Source::Kubeconfig(control_plane.agent_kubeconfig(family)?)
            }
        };
        Ok(AgentOptions {
            source,
            ..AgentOptions::default()
        })
    }

    /// Publishes the Service with IPv4 only, and shows how.
    pub(crate) fn publish(&self, stage: &Stage) -> Result<()> {
        match self {
            Self::Manifests(lab) => {
                let (service, slices) = (manifest(SINGLE_STACK), slices(stage)?);
                lab.manifests.write_text("slices.yaml", &slices)?;
                lab.manifests.write_text("service.yaml", &service)?;
                let folder = lab.manifests.path().display();
                narrator::run(&format!("cat {folder}/service.yaml"), Show::All)?;
                narrator::run(&format!("cat {folder}/slices.yaml"), Show::Head(16))
            }
            Self::Kubernetes {
                control_plane,
                pods,
                ..
            } => {
                let kubectl = control_plane.kubectl().command_line();
                narrator::run(
                    &format!("{kubectl} -n demo apply -f - <<'END'{KUBERNETES_SERVICE}END"),
                    Show::All,
                )?;
                eventually("slices of the Service", Duration::from_secs(10), || {
                    let found = control_plane.kubectl().run(&[
                        "-n",
                        "demo",
                        "get",
                        "endpointslices",
                        "-o",
                        "yaml",
                    ])?;
                    let last = pods.last().context("no pods")?;
                    ensure!(found.contains(&last.address(Family::V4).to_string()));
                    Ok(())
                })?;
                narrator::run(
                    &format!("{kubectl} -n demo get services,endpointslices,pods -o wide"),
                    Show::All,
                )
            }
        }
    }

    /// Gives the Service the other family too, and shows how.
    pub(crate) fn make_dual(&self) -> Result<()> {
        match self {
            Self::Manifests(lab) => replace(lab, SINGLE_STACK, DUAL_STACK),
            Self::Kubernetes { control_plane, .. } => {
                patch(
                    control_plane,
                    r#"{"spec": {"ipFamilyPolicy": "PreferDualStack"}}"#,
                )?;
                let kubectl = control_plane.kubectl().command_line();
                narrator::run(&format!("{kubectl} -n demo get endpointslices"), Show::All)
            }
        }
    }

    /// Gives the Service a port on every node, and shows how.
    pub(crate) fn add_node_port(&self) -> Result<()> {
        match self {
            Self::Manifests(lab) => replace(lab, DUAL_STACK, NODE_PORTS),
            Self::Kubernetes { control_plane, .. } => patch(
                control_plane,
                &format!(
                    r#"{{"spec": {{"type": "NodePort", "ports": [{{"port": 80, "nodePort": {NODE_PORT}}}]}}}}"#
                ),
            ),
        }
    }

    /// The Service's address of one family, once it has one.
    pub(crate) fn cluster_ip(&self, family: Family) -> Result<IpAddr> {
        match self {
            Self::Manifests(_) => Ok(cluster_ip(family, NUMBER)),
            Self::Kubernetes { namespace, .. } => {
                Ok(namespace.service("web")?.at(family, 80)?.ip())
            }
        }
    }

    /// Returns a command by which to change the Service by hand.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Manifests(lab) => format!("ls {}/*.yaml", lab.manifests.path().display()),
            Self::Kubernetes { control_plane, .. } => format!(
                "{} -n demo edit service web",
                control_plane.kubectl().command_line()
            ),
        }
    }
}

const KUBERNETES_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  ipFamilyPolicy: SingleStack
  selector:
    app: web
  ports:
  - port: 80
    targetPort: 8080
";

/// A form of the Service in the course of the demo.
#[derive(Clone, Copy)]
struct Form {
    kind: &'static str,
    families: &'static [Family],
}

const SINGLE_STACK: Form = Form {
    kind: "ClusterIP",
    families: &[Family::V4],
};
const DUAL_STACK: Form = Form {
    families: &Family::BOTH,
    ..SINGLE_STACK
};
const NODE_PORTS: Form = Form {
    kind: "NodePort",
    ..DUAL_STACK
};

/// Writes the manifest of the Service anew, and shows its new lines.
fn replace(lab: &Lab, before: Form, after: Form) -> Result<()> {
    let (before, after) = (manifest(before), manifest(after));
    lab.manifests.write_text("service.yaml", &after)?;
    let path = lab.manifests.path().join("service.yaml");
    let changed: Vec<_> = after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .collect();
    narrator::show(&format!("Now in {}:", path.display()), &changed.join("\n"))
}

fn patch(control_plane: &ControlPlane, patch: &str) -> Result<()> {
    let kubectl = control_plane.kubectl().command_line();
    narrator::run(
        &format!("{kubectl} -n demo patch service web --patch '{patch}'"),
        Show::All,
    )
}

/// The Service as the API server would complete it.
fn manifest(form: Form) -> String {
    let Form { kind, families } = form;
    let policy = match families {
        [_] => "SingleStack",
        _ => "PreferDualStack",
    };
    let names: Vec<_> = families.iter().map(|family| family.api_name()).collect();
    let addresses: Vec<_> = families
        .iter()
        .map(|&family| format!("'{}'", cluster_ip(family, NUMBER)))
        .collect();
    let node_port = match kind {
        "NodePort" => format!("\n    nodePort: {NODE_PORT}"),
        _ => String::new(),
    };
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
spec:
  type: {kind}
  ipFamilyPolicy: {policy}
  ipFamilies: [{}]
  clusterIP: {}
  clusterIPs: [{}]
  ports:
  - port: 80
    protocol: TCP
    targetPort: {PORT}{node_port}
",
        names.join(", "),
        addresses[0],
        addresses.join(", "),
    )
}

/// The endpoints, one slice for each family.
fn slices(stage: &Stage) -> Result<String> {
    let mut text = String::new();
    for family in Family::BOTH {
        let separator = if text.is_empty() { "" } else { "---\n" };
        write!(
            text,
            "{separator}apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-{}
  namespace: default
  labels:
    kubernetes.io/service-name: web
addressType: {family}
ports:
- name: ''
  port: {PORT}
  protocol: TCP
endpoints:
",
            family.api_name().to_lowercase()
        )?;
        for pod in &stage.backends {
            writeln!(
                text,
                "- addresses: ['{}']\n  nodeName: {}",
                pod.address(family),
                pod.node_name()
            )?;
        }
    }
    Ok(text)
}
