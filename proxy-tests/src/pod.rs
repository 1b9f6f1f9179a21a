//! A pod: a namespace joined to its node by a routed veth or the bridge.

use std::{fmt::Write, ops::Deref, sync::Arc};

use anyhow::Result;

use crate::{
    addressing::{LINK_LOCAL_GATEWAY, VETH_GATEWAY_V6, VETH_MAC, host_length, pod, subnet_length},
    family::Family,
    host::{Addresses, Host},
    netns::Netns,
    node::Node,
    topology::{Topology, Wiring},
};

/// A pod. Dereferences to its [`Host`]; dropping it deletes the pod.
#[derive(Debug)]
pub struct Pod {
    host: Host,
    node_name: String,
    node_device: String,
}

impl Pod {
    /// Joins the namespace to `node` as its pod `number`.
    pub(crate) fn start(node: &Node, name: &str, number: u8, netns: Netns) -> Result<Self> {
        let Topology {
            families, wiring, ..
        } = *node.topology();
        let addresses = Addresses::choose(families, |family| pod(family, node.index(), number));
        let host = Host::new(
            name,
            netns,
            Some(Arc::clone(node.cgroup())),
            addresses,
            families,
        )?;
        let node_device = format!("veth{number}");
        match wiring {
            Wiring::RoutedVeth => wire_routed(node, &node_device, &host)?,
            Wiring::Bridge => wire_bridged(node, &node_device, &host)?,
        }
        Ok(Self {
            host,
            node_name: node.name().to_owned(),
            node_device,
        })
    }

    /// The `nodeName` of the pod's endpoints.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The node's end of the pod's veth.
    pub fn node_device(&self) -> &str {
        &self.node_device
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The namespace itself goes some time after its last thread; the veth
        // should be gone now, as when a CNI plugin deletes a pod.
        let _ = self.host.ip("link del eth0");
    }
}

/// The pod has host addresses and the node's end as gateway.
fn wire_routed(node: &Node, device: &str, pod: &Host) -> Result<()> {
    let mtu = node.topology().pod_mtu();
    let mut on_node = format!(
        "link add {device} address {VETH_MAC} mtu {mtu} type veth \
         peer name eth0 mtu {mtu} netns {}\n\
         link set {device} up\n",
        pod.netns()
    );
    let mut in_pod = String::from("link set eth0 up\n");
    for address in pod.addresses().list() {
        let length = host_length(Family::of(address));
        writeln!(on_node, "route add {address}/{length} dev {device}")?;
        writeln!(in_pod, "addr add {address}/{length} dev eth0 nodad")?;
        match Family::of(address) {
            Family::V4 => {
                writeln!(in_pod, "route add {LINK_LOCAL_GATEWAY} dev eth0 scope link")?;
                writeln!(
                    in_pod,
                    "route add default via {LINK_LOCAL_GATEWAY} dev eth0"
                )?;
            }
            Family::V6 => writeln!(in_pod, "route add default via {VETH_GATEWAY_V6} dev eth0")?,
        }
    }
    node.ip(&on_node)?;
    node.sysctls(&[
        (&format!("net/ipv4/conf/{device}/proxy_arp"), "1"),
        (&format!("net/ipv4/neigh/{device}/proxy_delay"), "0"),
    ])?;
    pod.ip(&in_pod)
}

/// The pod is one of the bridge's subnet.
fn wire_bridged(node: &Node, device: &str, pod: &Host) -> Result<()> {
    let mtu = node.topology().pod_mtu();
    node.ip(&format!(
        "link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set {device} master cni0 up\n",
        pod.netns()
    ))?;
    let mut in_pod = String::from("link set eth0 up\n");
    for address in pod.addresses().list() {
        let family = Family::of(address);
        let gateway = crate::addressing::pod(family, node.index(), 1);
        writeln!(
            in_pod,
            "addr add {address}/{} dev eth0 nodad",
            subnet_length(family)
        )?;
        writeln!(in_pod, "route add default via {gateway} dev eth0")?;
    }
    pod.ip(&in_pod)
}
