//! Routes and tunnels from a node to the pods of the other nodes.

use std::{fmt::Write, net::IpAddr};

use anyhow::Result;

use crate::{
    addressing::{host_length, pod, pod_cidr},
    family::Family,
    node::Node,
    topology::{PodNetwork, UnderlayKind},
};

/// Joins `node` with its `peers`.
pub fn join(network: PodNetwork, node: &Node, peers: &[&Node]) -> Result<()> {
    for address in node.addresses().list() {
        let family = Family::of(address);
        match network {
            PodNetwork::Routes => add_routes(family, node, peers)?,
            PodNetwork::Vxlan => add_vxlan(family, node, peers)?,
        }
    }
    Ok(())
}

/// The pods of a peer by way of the peer. Behind routers the default route will
/// do: the routers know the pods.
fn add_routes(family: Family, node: &Node, peers: &[&Node]) -> Result<()> {
    if node.topology().underlay != UnderlayKind::Lan {
        return Ok(());
    }
    let mut batch = String::new();
    for peer in peers {
        let pods = pod_cidr(family, peer.index());
        writeln!(batch, "route add {pods} via {}", peer.address(family))?;
    }
    node.ip(&batch)
}

/// flannel's tunnel: nothing is learned, every neighbour and every forwarding
/// entry is written down.
fn add_vxlan(family: Family, node: &Node, peers: &[&Node]) -> Result<()> {
    let device = device(family);
    let mut links = format!(
        "link add {device} address {mac} mtu {mtu} type vxlan id 1 dstport 8472 \
         local {local} dev eth0 nolearning\n\
         addr add {tunnel}/{length} dev {device} nodad\n\
         link set {device} up\n",
        mac = mac(family, node.index()),
        mtu = mtu(family),
        local = node.address(family),
        tunnel = tunnel_address(family, node.index()),
        length = host_length(family),
    );
    let mut forwarding = String::new();
    for peer in peers {
        let (gateway, mac) = (
            tunnel_address(family, peer.index()),
            mac(family, peer.index()),
        );
        let pods = pod_cidr(family, peer.index());
        writeln!(
            links,
            "neigh add {gateway} lladdr {mac} dev {device} nud permanent"
        )?;
        writeln!(links, "route add {pods} via {gateway} dev {device} onlink")?;
        writeln!(
            forwarding,
            "fdb append {mac} dev {device} dst {}",
            peer.address(family)
        )?;
    }
    node.ip(&links)?;
    node.feed("bridge", &["-batch", "-"], &forwarding).map(drop)
}

/// flannel's names.
fn device(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.1",
        Family::V6 => "flannel-v6.1",
    }
}

/// 1500 less the outer headers.
fn mtu(family: Family) -> u16 {
    match family {
        Family::V4 => 1450,
        Family::V6 => 1430,
    }
}

fn tunnel_address(family: Family, node: u8) -> IpAddr {
    pod(family, node, 0)
}

fn mac(family: Family, node: u8) -> String {
    let family = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("02:f1:00:00:0{family}:{node:02x}")
}
