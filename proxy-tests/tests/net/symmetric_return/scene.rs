//! Two nodes, of which the first has two cards, and a client behind the router.

use std::{fmt::Write, net::SocketAddr};

use anyhow::Result;
use proxy_tests::{
    ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Pod, Policy, Service, Topology,
    addressing::{lan, public, subnet_length},
    host::Addresses,
    netns::Netns,
    traffic::Server,
    underlay::route_public,
};

pub(crate) const NODE_PORT: u16 = 30_080;
/// The LAN segments of the second card and of the client behind the router.
pub(crate) const SECOND: u8 = 1;
pub(crate) const BEYOND: u8 = 2;
/// The routing table that pods' rules name.
const TABLE: u8 = 101;

const TOPOLOGY: Topology = Topology {
    drop_invalid: true,
    ..Topology::ROUTED
};

/// The lab's first node has `eth1` besides `eth0`, both to the same router, and
/// its default route by `eth0`.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) local: Pod,
    pub(crate) remote: Pod,
    /// A client whose packets the router sends on.
    pub(crate) beyond: Host,
    _servers: [Server; 2],
}

impl Scene {
    pub(crate) fn set() -> Result<Self> {
        let lab = Lab::start(TOPOLOGY)?;
        let node = &lab.nodes[0];
        let local = node.add_pod("local")?;
        let remote = lab.nodes[1].add_pod("remote")?;
        let servers = [
            Server::start(&local, ECHO_TARGET)?,
            Server::start(&remote, ECHO_TARGET)?,
        ];
        add_second_card(&lab)?;
        let beyond = add_beyond(&lab)?;
        // Loose, as network plugins set it on such nodes.
        node.sysctl("net/ipv4/conf/all/rp_filter", "2")?;
        let switch = lab.underlay.switch();
        switch.nft(STRICT)?;
        route_public(switch, node)?;
        route_public(&lab.external, node)?;
        Ok(Self {
            lab,
            local,
            remote,
            beyond,
            _servers: servers,
        })
    }

    pub(crate) fn node(&self) -> &Node {
        &self.lab.nodes[0]
    }

    pub(crate) fn families(&self) -> &'static [Family] {
        self.lab.families().list()
    }

    /// Clients on the LAN and behind the router.
    pub(crate) fn clients(&self) -> [&Host; 2] {
        [&self.lab.external, &self.beyond]
    }

    pub(crate) fn serve(&self, backend: &Pod, policy: Policy) -> Result<()> {
        let vip = Addresses::choose(self.lab.families(), |family| public(family, 1));
        let service = Service::echo(self.lab.families())
            .node_port(ECHO_PORT, NODE_PORT)
            .load_balancer(vip, "VIP")
            .external_policy(policy)
            .endpoint(backend);
        self.lab.manifests.write(&service)
    }

    /// Has routing lead what these pods send to everybody else to another device.
    pub(crate) fn rule(&self, pods: &[&Pod], route: impl Fn(Family) -> String) -> Result<()> {
        for &family in self.families() {
            let mut batch = format!("route add default {} table {TABLE}\n", route(family));
            for pod in pods {
                let address = pod.address(family);
                writeln!(batch, "rule add from {address} lookup {TABLE}")?;
            }
            ip(self.node(), family, &batch)?;
        }
        Ok(())
    }

    /// The rules of a network plugin that gives pods addresses of the second card.
    pub(crate) fn rule_by_second_card(&self) -> Result<()> {
        self.rule(&[&self.local, &self.remote], |family| {
            format!("via {} dev eth1", lan(family, SECOND, 1))
        })
    }

    /// Has the router reach load balancers' addresses by the second card.
    pub(crate) fn move_vip(&self) -> Result<()> {
        let mut batch = String::new();
        for &family in self.families() {
            let (vip, length) = (public(family, 0), subnet_length(family));
            let next = lan(family, SECOND, 11);
            writeln!(batch, "route replace {vip}/{length} via {next}")?;
        }
        self.lab.underlay.switch().ip(&batch)
    }
}

/// A router's strict reverse-path filter, in both families. It stands for the
/// network of a cloud, which knows each card's addresses.
const STRICT: &str = "
table inet strict {
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    ip6 saddr { fe80::/10, :: } accept
    fib saddr . iif oif missing counter drop
  }
}
";

/// Runs the lines of `batch` as `ip` commands of one family.
pub(crate) fn ip(host: &Host, family: Family, batch: &str) -> Result<()> {
    let flag = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    host.feed("ip", &[flag, "-batch", "-"], batch).map(drop)
}

pub(crate) fn vip(family: Family) -> SocketAddr {
    SocketAddr::new(public(family, 1), ECHO_PORT)
}

fn add_second_card(lab: &Lab) -> Result<()> {
    let node = &lab.nodes[0];
    let mut switch = format!(
        "link add lan2 type veth peer name eth1 netns {}\nlink set lan2 up\n",
        node.netns()
    );
    let mut card = "link set eth1 up\n".to_owned();
    for &family in lab.families().list() {
        let length = subnet_length(family);
        let (router, own) = (lan(family, SECOND, 1), lan(family, SECOND, 11));
        writeln!(switch, "addr add {router}/{length} dev lan2 nodad")?;
        writeln!(card, "addr add {own}/{length} dev eth1 nodad")?;
    }
    lab.underlay.switch().ip(&switch)?;
    node.ip(&card)
}

fn add_beyond(lab: &Lab) -> Result<Host> {
    let families = lab.families();
    let addresses = Addresses::choose(families, |family| lan(family, BEYOND, 50));
    let netns = Netns::create(&format!("{}-beyond", lab.id()))?;
    let host = Host::new("beyond", netns, None, addresses, families)?;
    let mut switch = format!(
        "link add lan3 type veth peer name eth0 netns {}\nlink set lan3 up\n",
        host.netns()
    );
    let mut own = "link set eth0 up\n".to_owned();
    for &family in families.list() {
        let (router, length) = (lan(family, BEYOND, 1), subnet_length(family));
        let address = host.address(family);
        writeln!(switch, "addr add {router}/{length} dev lan3 nodad")?;
        writeln!(own, "addr add {address}/{length} dev eth0 nodad")?;
        writeln!(own, "route add default via {router}")?;
    }
    lab.underlay.switch().ip(&switch)?;
    host.ip(&own)?;
    Ok(host)
}
