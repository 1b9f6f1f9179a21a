//! A Kubernetes namespace of one test, and what it puts there.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::Deref,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{ContainerPort, Kubectl, objects};
use crate::{ECHO_PORT, ECHO_TARGET, agent, family::Family, lab::Lab, pod::Pod, traffic::Server};

/// The label all backends have, unless told otherwise: `app: echo`.
const APP: &str = "echo";

/// A namespace. The lab's pods bear its name too, because tests share the lab.
#[derive(Debug)]
pub struct Namespace<'cluster> {
    lab: &'cluster Lab,
    kubectl: Kubectl,
    name: String,
}

impl<'cluster> Namespace<'cluster> {
    /// Creates it.
    pub fn create(lab: &'cluster Lab, kubectl: &Kubectl, name: &str) -> Result<Self> {
        kubectl.run(&["create", "namespace", name])?;
        Ok(Self {
            lab,
            kubectl: kubectl.clone(),
            name: name.to_owned(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab its pods are in.
    pub fn lab(&self) -> &'cluster Lab {
        self.lab
    }

    /// Runs `kubectl` in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.feed(arguments, "")
    }

    fn feed(&self, arguments: &[&str], input: &str) -> Result<String> {
        let arguments = [&["--namespace", &self.name], arguments].concat();
        self.kubectl.feed(&arguments, input)
    }

    /// `kubectl apply` of these documents, by the server: the client would take
    /// ports of one number for one port, whatever their protocols.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.feed(&arguments, yaml).map(drop)
    }

    /// Applies a Service for the pods with label `app: echo`: port 80 over TCP
    /// and UDP. `fields` are added to its spec: `ipFamilyPolicy: SingleStack`.
    pub fn apply_echo(&self, name: &str, fields: &str) -> Result<()> {
        let comma = if fields.is_empty() { "" } else { "," };
        self.apply(&format!(
            "
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec: {{
  {fields}{comma}
  selector: {{ app: {APP} }},
  ports: [
    {{ name: tcp, port: {ECHO_PORT}, protocol: TCP, targetPort: {ECHO_TARGET} }},
    {{ name: udp, port: {ECHO_PORT}, protocol: UDP, targetPort: {ECHO_TARGET} }},
  ],
}}
"
        ))
    }

    /// A strategic merge patch of an object: `service/echo`.
    pub fn patch(&self, object: &str, patch: &Value) -> Result<()> {
        self.kubectl(&["patch", object, "--patch", &patch.to_string()])
            .map(drop)
    }

    /// Says that a load balancer leads to a Service, as a cloud provider would:
    /// each address with its `ipMode`.
    pub fn set_ingress(&self, service: &str, ingress: &[(IpAddr, &str)]) -> Result<()> {
        let ingress: Vec<_> = ingress
            .iter()
            .map(|(address, mode)| json!({ "ip": address.to_string(), "ipMode": mode }))
            .collect();
        let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        let object = format!("service/{service}");
        let arguments = ["patch", &object, "--subresource=status", "--patch"];
        self.kubectl(&[&arguments[..], &[&patch.to_string()]].concat())
            .map(drop)
    }

    /// A Service as the API server has it.
    pub fn service(&self, name: &str) -> Result<ServiceView> {
        let namespace = ["--namespace", &self.name, "service", name];
        self.kubectl.get(&namespace).map(ServiceView)
    }

    /// Returns whether the tables of a node have frontends of a Service in a family.
    pub fn is_served(&self, node: usize, service: &str, family: Family) -> Result<bool> {
        let family = match family {
            Family::V4 => "4",
            Family::V6 => "6",
        };
        let arguments = ["get", "services", "-o", "json", "--family", family];
        let arguments = [&arguments[..], &["-n", &self.name]].concat();
        let shown = agent::command(&self.lab.nodes[node], &arguments)?;
        let rows: Vec<Value> = serde_json::from_str(&shown)?;
        Ok(rows.iter().any(|row| row["name"] == service))
    }

    /// A pod on a node, counted from 0, that no object speaks of: a client.
    pub fn client(&self, node: usize, name: &str) -> Result<Pod> {
        self.lab.nodes[node].add_pod(&format!("{}-{name}", self.name))
    }

    /// Pods with a server at [`ECHO_TARGET`], one for each node and name, with
    /// their Pod objects: label `app: echo`, ready.
    pub fn backends<const N: usize>(&self, places: [(usize, &str); N]) -> Result<[ApiPod; N]> {
        let pods = places
            .into_iter()
            .map(|(node, name)| ApiPod::start(self, node, name, APP, ECHO_TARGET, &[]))
            .collect::<Result<Vec<_>>>()?;
        self.register(pods.iter())?;
        for pod in &pods {
            pod.set_ready(true)?;
        }
        pods.try_into().ok().context("one pod for each place")
    }

    /// Creates the objects of pods.
    pub fn register<'pod>(&self, pods: impl Iterator<Item = &'pod ApiPod>) -> Result<()> {
        let objects: Vec<_> = pods.map(|pod| pod.object.clone()).collect();
        self.kubectl.create(&objects)
    }
}

/// A pod of the lab with a server, known to the API server. Dereferences to
/// its [`Pod`].
#[derive(Debug)]
pub struct ApiPod {
    // Before the pod, whose namespace it is in.
    #[allow(dead_code, reason = "it answers until it is dropped")]
    server: Option<Server>,
    pod: Pod,
    kubectl: Kubectl,
    object: Value,
}

impl ApiPod {
    /// Starts a pod with a server at `port`. It is not known to the API server
    /// until [`Namespace::register`].
    pub fn start(
        namespace: &Namespace<'_>,
        node: usize,
        name: &str,
        app: &str,
        port: u16,
        ports: &[ContainerPort],
    ) -> Result<Self> {
        let pod = namespace.client(node, name)?;
        let server = Server::start(&pod, port)?;
        let mut pod = Self::of(namespace, pod, app, ports);
        pod.server = Some(server);
        Ok(pod)
    }

    /// Makes an object for a pod that has whatever server it has.
    pub fn of(namespace: &Namespace<'_>, pod: Pod, app: &str, ports: &[ContainerPort]) -> Self {
        Self {
            server: None,
            object: objects::pod(&pod, &namespace.name, app, ports),
            pod,
            kubectl: namespace.kubectl.clone(),
        }
    }

    /// Says whether the pod is ready; its addresses are told with it.
    pub fn set_ready(&self, ready: bool) -> Result<()> {
        let mut object = self.object.clone();
        object["status"] = objects::status(self.pod.addresses(), ready);
        self.kubectl.replace_status(&[object])
    }

    /// Asks the pod to end. The kubelet would let it serve until it has.
    pub fn terminate(&self) -> Result<()> {
        self.delete(&["--grace-period=60"])
    }

    /// Says that the pod has ended, as the kubelet would.
    pub fn remove(&self) -> Result<()> {
        self.delete(&["--grace-period=0", "--force"])
    }

    fn delete(&self, how: &[&str]) -> Result<()> {
        let namespace = self.object["metadata"]["namespace"].as_str();
        let namespace = ["--namespace", namespace.unwrap_or_default()];
        let pod = ["delete", "pod", self.pod.name(), "--wait=false"];
        let arguments = [&namespace[..], &pod, how].concat();
        self.kubectl.run(&arguments).map(drop)
    }
}

impl Deref for ApiPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

/// A Service object.
#[derive(Clone, Debug)]
pub struct ServiceView(Value);

impl ServiceView {
    /// Its cluster IPs, in their order.
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        let addresses = self.0["spec"]["clusterIPs"].as_array();
        addresses
            .into_iter()
            .flatten()
            .filter_map(|address| address.as_str()?.parse().ok())
            .collect()
    }

    /// The families it has, in their order.
    pub fn families(&self) -> Vec<Family> {
        self.cluster_ips().into_iter().map(Family::of).collect()
    }

    /// Its cluster IP of one family, with a port.
    pub fn at(&self, family: Family, port: u16) -> Result<SocketAddr> {
        self.cluster_ips()
            .into_iter()
            .find(|&address| Family::of(address) == family)
            .map(|address| SocketAddr::new(address, port))
            .with_context(|| format!("the Service has no {family} cluster IP: {}", self.0["spec"]))
    }

    /// The port at every node, the same for all ports of the Service.
    pub fn node_port(&self) -> Result<u16> {
        let ports = self.0["spec"]["ports"].as_array().into_iter().flatten();
        let ports: BTreeSet<_> = ports.filter_map(|port| port["nodePort"].as_u64()).collect();
        let port = ports.first().context("no nodePort")?;
        ensure!(ports.len() == 1, "{ports:?}");
        Ok(u16::try_from(*port)?)
    }

    /// The port at which nodes tell how many endpoints they have.
    pub fn health_check_port(&self) -> Result<u16> {
        let port = self.0["spec"]["healthCheckNodePort"].as_u64();
        Ok(u16::try_from(port.context("no healthCheckNodePort")?)?)
    }
}
