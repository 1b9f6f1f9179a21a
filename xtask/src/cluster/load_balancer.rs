//! The load balancer of a cluster: gives Services of type LoadBalancer an address
//! of each of their families, and has the router between the cluster and what is
//! outside send it to nodes. It is a process in the router's network namespace.
//!
//! Nodes see the address itself, as `ipMode: VIP` says. Where endpoints count on
//! their node only, nodes are asked at the health check port of the family; where the Service
//! has session affinity, all its clients have the same node.

mod health;
mod routes;
mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::BufReader,
    net::IpAddr,
    process::Stdio,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use self::{
    routes::Routes,
    service::{Service, Step},
};
use super::{
    addresses,
    kubectl::Kubectl,
    place::{Place, SWITCH, node_name},
    process,
    spec::{Family, Spec},
};
use crate::exec;

/// How often nodes are asked, and what did not work is tried again.
const PACE: Duration = Duration::from_secs(1);

/// Starts it in the background.
pub(crate) fn start(place: &Place) -> Result<()> {
    let program = env::current_exe().context("find this program")?;
    let mut command = place.at(SWITCH, program);
    command.args(["cluster", "--name", place.name(), "balance"]);
    process::start(&command, &place.file("log/load-balancer.log"))?;
    Ok(())
}

/// An object that changed.
enum Event {
    Service { object: Value, gone: bool },
    Node { object: Value, gone: bool },
}

struct Balancer<'a> {
    kubectl: &'a Kubectl<'a>,
    spec: Spec,
    /// By namespace and name.
    services: BTreeMap<(String, String), Service>,
    /// Numbers of the nodes that are ready.
    ready: BTreeSet<u8>,
    routes: Routes,
}

/// Balances until the process is ended.
pub(crate) fn run(place: &Place, kubectl: &Kubectl<'_>) -> Result<()> {
    let (sender, events) = mpsc::channel();
    let mut balancer = Balancer {
        kubectl,
        spec: Spec::read(&place.spec())?,
        services: BTreeMap::new(),
        ready: BTreeSet::new(),
        routes: Routes::default(),
    };
    thread::scope(|scope| {
        for resource in ["services", "nodes"] {
            let sender = sender.clone();
            scope.spawn(move || watch(kubectl, resource, &sender));
        }
        loop {
            match events.recv_timeout(PACE) {
                Ok(event) => {
                    balancer.take(&event);
                    for event in events.try_iter() {
                        balancer.take(&event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            balancer.bring_about();
        }
    })
}

/// Passes on all objects of a kind, and their changes, again and again.
fn watch(kubectl: &Kubectl<'_>, resource: &str, sender: &Sender<Event>) {
    loop {
        if let Err(error) = watch_once(kubectl, resource, sender) {
            eprintln!("cannot watch {resource}: {error:#}");
        }
        thread::sleep(PACE);
    }
}

fn watch_once(kubectl: &Kubectl<'_>, resource: &str, sender: &Sender<Event>) -> Result<()> {
    let mut kubectl = kubectl
        .command()
        .args(["get", resource, "--all-namespaces", "--watch"])
        .args(["--output-watch-events", "--output=json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start kubectl")?;
    let output = kubectl.stdout.take().context("kubectl has no output")?;
    let changes = serde_json::Deserializer::from_reader(BufReader::new(output));
    for change in changes.into_iter::<Value>() {
        let mut change = change.context("understand kubectl")?;
        let gone = change["type"] == "DELETED";
        let object = change["object"].take();
        let event = match resource {
            "services" => Event::Service { object, gone },
            _ => Event::Node { object, gone },
        };
        sender.send(event).context("nobody listens")?;
    }
    kubectl.wait().context("wait for kubectl")?;
    Ok(())
}

impl Balancer<'_> {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Service { object, gone } => {
                let service = Service::read(object);
                let key = (service.namespace.clone(), service.name.clone());
                if *gone {
                    self.services.remove(&key);
                } else {
                    self.services.insert(key, service);
                }
            }
            Event::Node { object, gone } => {
                let numbers = self.spec.nodes().map(|(number, _)| number);
                let name = &object["metadata"]["name"];
                for number in numbers.filter(|number| *name == node_name(*number)) {
                    if !gone && service::takes_traffic(object) {
                        self.ready.insert(number);
                    } else {
                        self.ready.remove(&number);
                    }
                }
            }
        }
    }

    /// Does what there is to be done. What fails is tried again.
    fn bring_about(&mut self) {
        let mut taken: BTreeSet<_> = self
            .services
            .values()
            .flat_map(|service| service.addresses.clone())
            .collect();
        let (mut routes, mut assigned) = (BTreeMap::new(), Vec::new());
        for service in self.services.values() {
            let addresses = service.assign(&mut taken);
            routes.extend(addresses.iter().map(|address| {
                let family = Family::of(*address);
                let nodes = nodes(&self.spec, &self.ready, service, family);
                (*address, nodes)
            }));
            assigned.push(addresses);
        }
        if let Err(error) = self.routes.bring_to(&routes) {
            eprintln!("cannot route: {error:#}");
        }
        for (service, assigned) in self.services.values_mut().zip(&assigned) {
            while let Some(step) = service.next_step(assigned) {
                match patch(self.kubectl, service, &step) {
                    Ok(object) => *service = Service::read(&object),
                    Err(error) => {
                        eprintln!("{}/{}: {error:#}", service.namespace, service.name);
                        break;
                    }
                }
            }
        }
    }
}

/// The nodes that a Service's clients are sent to.
fn nodes(spec: &Spec, ready: &BTreeSet<u8>, service: &Service, family: Family) -> Vec<u8> {
    let mut nodes: Vec<_> = match service.health_check_port {
        Some(port) if service.wanted => health::healthy(spec, family, port),
        _ => ready.iter().copied().collect(),
    };
    if service.affinity {
        nodes.truncate(1);
    }
    nodes
}

fn patch(kubectl: &Kubectl<'_>, service: &Service, step: &Step) -> Result<Value> {
    let mut command = kubectl.command();
    command
        .args(["--namespace", &service.namespace])
        .args(["patch", "service", &service.name, "--output=json"])
        .args(["--type=merge", "--patch"]);
    let version = json!({"resourceVersion": service.version});
    match step {
        Step::Finalizers(finalizers) => {
            let mut metadata = version;
            metadata["finalizers"] = finalizers.as_slice().into();
            command.arg(json!({"metadata": metadata}).to_string());
        }
        Step::Addresses(addresses) => {
            let ingress: Vec<_> = addresses
                .iter()
                .map(|address| json!({"ip": address}))
                .collect();
            let status = json!({"loadBalancer": {"ingress": ingress}});
            command
                .arg(json!({"metadata": version, "status": status}).to_string())
                .arg("--subresource=status");
        }
    }
    let object = exec::output(&mut command)?;
    serde_json::from_str(&object).context("understand kubectl")
}

/// The first address for load balancers that nobody has.
fn free(family: Family, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    (1..=u8::MAX)
        .map(|number| addresses::load_balancer(family, number))
        .find(|address| !taken.contains(address))
}
