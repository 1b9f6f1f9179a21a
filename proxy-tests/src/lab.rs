//! A whole lab: underlay, nodes, an external client, and the manifests.

use std::net::IpAddr;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    agent::{Agent, AgentOptions},
    family::{Families, Family},
    host::{Addresses, Host},
    manifest::ManifestDir,
    name,
    netns::Netns,
    node::Node,
    pod_network,
    topology::Topology,
    tunnel::TunnelHost,
    underlay::{Underlay, route_services},
};

/// The first external client's number on the LAN; node n has number 10 + n.
const EXTERNAL: u8 = 100;

/// A cluster in network namespaces. Fields are dropped in this order.
#[derive(Debug)]
pub struct Lab {
    pub nodes: Vec<Node>,
    /// A host outside the cluster with a route for the Services by way of the
    /// first node.
    pub external: Host,
    pub underlay: Underlay,
    /// The manifests that the agents read, none at first.
    pub manifests: ManifestDir,
    /// Agents' logs and anything else worth keeping until the lab ends.
    pub scratch: TempDir,
    id: String,
    externals: u8,
}

impl Lab {
    /// Builds a lab. Nothing translates yet: see [`Lab::start_agents`].
    pub fn start(topology: Topology) -> Result<Self> {
        let id = name::unique();
        let count = u8::try_from(topology.nodes)?;
        let names: Vec<String> = (1..=count)
            .map(|index| format!("{id}-node-{index}"))
            .chain([format!("{id}-switch"), format!("{id}-external")])
            .collect();
        let mut spaces = Netns::create_all(&names)?;
        let external = spaces.pop().context("external's namespace")?;
        let switch = spaces.pop().context("switch's namespace")?;

        let mut underlay = Underlay::start(switch, &topology)?;
        let mut nodes = Vec::new();
        for (index, netns) in (1..).zip(spaces) {
            let addresses = underlay.address_of(10 + index);
            let node = Node::start(&id, index, netns, addresses, &topology)?;
            let router = router_space(&underlay, &id, node.name())?;
            underlay.attach(&node, 10 + index, router)?;
            nodes.push(node);
        }
        for node in &nodes {
            let peers: Vec<&Node> = nodes
                .iter()
                .filter(|peer| peer.index() != node.index())
                .collect();
            pod_network::join(topology.pod_network, node, &peers)?;
        }
        let external = attach_external(&mut underlay, &id, "external", EXTERNAL, external)?;
        let numbers: Vec<u8> = nodes.iter().map(|node| 10 + node.index()).collect();
        underlay.route_cluster(&numbers)?;
        if let (Some(first), false) = (nodes.first(), underlay.needs_routers()) {
            route_services(&external, first)?;
        }
        let scratch = tempfile::Builder::new()
            .prefix(&format!("{id}-"))
            .tempdir()?;
        let manifests = ManifestDir::create(&scratch.path().join("manifests"))?;
        for node in &nodes {
            manifests.write_node(node)?;
        }
        Ok(Self {
            nodes,
            external,
            underlay,
            manifests,
            scratch,
            id,
            externals: 1,
        })
    }

    /// The prefix of every name this lab gives to the kernel.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The families its hosts have addresses of.
    pub fn families(&self) -> Families {
        self.underlay.families()
    }

    /// One more host on the LAN, outside the cluster.
    pub fn add_external(&mut self, name: &str) -> Result<Host> {
        let netns = Netns::create(&format!("{}-{name}", self.id))?;
        let number = EXTERNAL + self.externals;
        self.externals += 1;
        attach_external(&mut self.underlay, &self.id, name, number, netns)
    }

    /// A host behind a tun device of `node`, with an address of each family.
    pub fn add_tunnel_host(
        &self,
        node: &Node,
        name: &str,
        addresses: impl Fn(Family) -> IpAddr,
    ) -> Result<TunnelHost> {
        let netns = format!("{}-{name}", self.id);
        let addresses = Addresses::choose(self.families(), addresses);
        TunnelHost::start(node, name, &netns, addresses)
    }

    /// Starts an agent on every node and waits until all are ready.
    pub fn start_agents(&self, options: &AgentOptions) -> Result<Vec<Agent<'_>>> {
        let agents = self
            .nodes
            .iter()
            .map(|node| Agent::start(node, self, options))
            .collect::<Result<Vec<_>>>()?;
        for agent in &agents {
            agent.wait_ready()?;
        }
        Ok(agents)
    }
}

fn attach_external(
    underlay: &mut Underlay,
    id: &str,
    name: &str,
    number: u8,
    netns: Netns,
) -> Result<Host> {
    let addresses = underlay.address_of(number);
    let host = Host::new(name, netns, None, addresses, underlay.families())?;
    let router = router_space(underlay, id, name)?;
    underlay.attach(&host, number, router)?;
    Ok(host)
}

fn router_space(underlay: &Underlay, id: &str, host: &str) -> Result<Option<Netns>> {
    underlay
        .needs_routers()
        .then(|| Netns::create(&format!("{id}-r-{host}")))
        .transpose()
}
