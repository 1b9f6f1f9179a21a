//! A node of the cluster: routes pods' packets, runs the agent.

use std::{
    fmt::Write,
    net::IpAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context, Result};

use crate::{
    addressing::{pod, subnet_length},
    bpffs::PinDirectory,
    cgroup::Cgroup,
    family::Family,
    firewall,
    host::{Addresses, Host},
    netns::Netns,
    pod::Pod,
    topology::{Topology, Wiring},
    underlay::forward,
};

/// A node. Dereferences to its [`Host`]; what runs there is a host process,
/// like a pod with `hostNetwork`.
#[derive(Debug)]
pub struct Node {
    // First, so that the programs are detached before their devices go.
    pins: PinDirectory,
    host: Host,
    cgroup: Arc<Cgroup>,
    lab: String,
    index: u8,
    topology: Topology,
    pods_made: AtomicU8,
}

impl Node {
    /// Sets up node `index`, counted from 1, in `netns`; `lab` is the prefix
    /// of every name the lab gives away.
    pub fn start(
        lab: &str,
        index: u8,
        netns: Netns,
        addresses: Addresses,
        topology: &Topology,
    ) -> Result<Self> {
        let name = format!("node-{index}");
        let cgroup = Arc::new(Cgroup::create(&format!("{lab}-{name}"))?);
        let host = Host::new(
            &name,
            netns,
            Some(Arc::clone(&cgroup)),
            addresses,
            topology.families,
        )?;
        let node = Self {
            pins: PinDirectory::reserve(&format!("{lab}-{name}"))?,
            host,
            cgroup,
            lab: lab.to_owned(),
            index,
            topology: *topology,
            pods_made: AtomicU8::new(0),
        };
        node.set_up()?;
        Ok(node)
    }

    /// Sets what an installer and other software leave on a node.
    fn set_up(&self) -> Result<()> {
        let Topology { families, .. } = self.topology;
        forward(&self.host, families)?;
        let bridged = if self.topology.bridge_netfilter {
            "1"
        } else {
            "0"
        };
        self.sysctls(&[
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/default/rp_filter", "1"),
            ("net/bridge/bridge-nf-call-iptables", bridged),
            ("net/bridge/bridge-nf-call-ip6tables", bridged),
        ])?;
        if self.topology.wiring == Wiring::Bridge {
            self.add_bridge()?;
        }
        let mut rules = String::new();
        if self.topology.masquerade {
            for &family in families.list() {
                rules.push_str(&firewall::flannel_masquerade(family, self.index));
            }
        }
        if self.topology.drop_invalid {
            rules.push_str(firewall::DROP_INVALID);
        }
        if rules.is_empty() {
            Ok(())
        } else {
            self.nft(&rules)
        }
    }

    /// The CNI's bridge with the pods' gateway addresses. Its hardware
    /// address is fixed, as the bridge plugin fixes it, lest it change with
    /// the ports.
    fn add_bridge(&self) -> Result<()> {
        let mut batch = format!(
            "link add cni0 address 02:c0:00:00:00:{:02x} mtu {} type bridge\nlink set cni0 up\n",
            self.index,
            self.topology.pod_mtu(),
        );
        for &family in self.topology.families.list() {
            let gateway = pod(family, self.index, 1);
            writeln!(
                batch,
                "addr add {gateway}/{} dev cni0 nodad",
                subnet_length(family)
            )?;
        }
        self.ip(&batch)
    }

    /// Starts a pod called `name` on this node.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let netns = Netns::create(&format!("{}-{name}", self.lab))?;
        self.wire_pod(name, netns)
    }

    /// Starts several pods at once.
    pub fn add_pods<const N: usize>(&self, names: [&str; N]) -> Result<[Pod; N]> {
        let netns_names = names.map(|name| format!("{}-{name}", self.lab));
        let pods = Netns::create_all(&netns_names)?
            .into_iter()
            .zip(names)
            .map(|(netns, name)| self.wire_pod(name, netns))
            .collect::<Result<Vec<_>>>()?;
        pods.try_into().ok().context("one namespace for each name")
    }

    fn wire_pod(&self, name: &str, netns: Netns) -> Result<Pod> {
        let number = self.pods_made.fetch_add(1, Ordering::Relaxed) + 2;
        Pod::start(self, name, number, netns).with_context(|| format!("pod {name}"))
    }

    /// The node's number, counted from 1; it is part of its pods' addresses.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The topology of the lab.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The directory for the agent's pins.
    pub fn pins(&self) -> &PinDirectory {
        &self.pins
    }

    /// The cgroup that everything on this node runs in.
    pub fn cgroup(&self) -> &Arc<Cgroup> {
        &self.cgroup
    }

    /// All addresses of one family on the node's devices: what a masqueraded
    /// packet may come from.
    pub fn device_addresses(&self, family: Family) -> Result<Vec<IpAddr>> {
        let flag = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        let shown = self.exec("ip", &[flag, "-json", "addr", "show", "scope", "global"])?;
        let links: serde_json::Value = serde_json::from_str(&shown)?;
        let links = links.as_array().context("ip prints an array")?;
        Ok(links
            .iter()
            .flat_map(|link| link["addr_info"].as_array().into_iter().flatten())
            .filter_map(|address| address["local"].as_str()?.parse().ok())
            .collect())
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}
