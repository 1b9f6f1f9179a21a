//! The pods the story needs, and the names under which to reach things.

use anyhow::Result;
use proxy_tests::{Family, Lab, Node, Pod, exec};

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
        let nodes = lab.nodes.iter().map(|node| (&**node, "-"));
        for (host, node) in nodes.chain(pods.map(|pod| (&**pod, pod.node_name()))) {
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

    /// `curl` in the client's namespace, ready for a URL.
    pub(crate) fn curl(&self) -> String {
        format!(
            "ip netns exec {} curl --silent --show-error --max-time 2",
            self.client.netns()
        )
    }
}

/// `proxy-agent get` on a node, without what comes after `get`.
pub(crate) fn agent_get(node: &Node, what: &str) -> Result<String> {
    Ok(format!(
        "{} get {what} --bpf-root {}",
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
