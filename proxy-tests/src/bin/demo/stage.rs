//! The pods the story needs, and the names under which to reach things.

use anyhow::Result;
use proxy_tests::{Family, Host, Lab, Node, Pod, exec};

use crate::web::WebServer;

/// A client on the first node and web servers on both.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) client: Pod,
    // Before the pods they are in.
    servers: Vec<WebServer>,
    pub(crate) backends: Vec<Pod>,
}

impl Stage {
    /// Starts the pods.
    pub(crate) fn set(lab: &Lab) -> Result<Self> {
        let [client, first] = lab.nodes[0].add_pods(["client", "web-1"])?;
        let [second, third] = lab.nodes[1].add_pods(["web-2", "web-3"])?;
        let mut stage = Self {
            client,
            servers: Vec::new(),
            backends: vec![first, second, third],
        };
        for backend in &stage.backends {
            for family in Family::BOTH {
                stage.servers.push(WebServer::start(backend, family)?);
            }
        }
        Ok(stage)
    }

    /// All pods, as a table.
    pub(crate) fn table(&self, lab: &Lab) -> String {
        let mut lines = vec![format!(
            "{:<8} {:<8} {:<15} {:<18} {}",
            "HOST", "ON", "IPV4", "IPV6", "NETWORK NAMESPACE"
        )];
        let pods = [&self.client].into_iter().chain(&self.backends);
        let hosts = lab.nodes.iter().map(|node| (&**node, "-"));
        let hosts = hosts.chain(pods.map(|pod| (&**pod, pod.node_name())));
        for (host, node) in hosts.chain([(&lab.external, "-")]) {
            lines.push(format!(
                "{:<8} {:<8} {:<15} {:<18} {}",
                host.name(),
                node,
                host.address(Family::V4),
                host.address(Family::V6),
                host.netns()
            ));
        }
        lines.join("\n")
    }
}

/// `curl` on a host, ready for a URL.
pub(crate) fn curl(host: &Host) -> String {
    format!(
        "ip netns exec {} curl --silent --show-error --max-time 2",
        host.netns()
    )
}

/// Before a command: run it on a node. `ip netns exec` would hide the pins.
pub(crate) fn on(node: &Node) -> String {
    format!("nsenter --net=/run/netns/{}", node.netns())
}

/// `proxy-agent` about the tables of a node: `get services`.
pub(crate) fn agent(node: &Node, arguments: &str) -> Result<String> {
    Ok(format!(
        "{} {arguments} --bpf-root {}",
        proxy_tests::agent::binary()?.display(),
        node.pins().path().display()
    ))
}

/// `bpftool map dump` of a pinned table of a node.
pub(crate) fn map_dump(node: &Node, map: &str) -> Result<Option<String>> {
    let pins = node.pins();
    let pinned = pins.pins()?;
    let pinned = pinned.iter().find(|pin| pin.ends_with(map));
    Ok(pinned.map(|pin| {
        format!(
            "{} map dump pinned {}",
            exec::bpftool().display(),
            pins.path().join(pin).display()
        )
    }))
}
