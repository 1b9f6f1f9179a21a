//! The layout of a lab, chosen by each test.

use crate::family::Families;

/// The number of nodes, their networks, and what else works on their packets.
/// The default is one dual-stack node with routed veths.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    pub families: Families,
    pub nodes: usize,
    pub underlay: UnderlayKind,
    pub pod_network: PodNetwork,
    pub wiring: Wiring,
    /// flannel's MASQUERADE rules on every node, both families.
    pub masquerade: bool,
    /// `ct state invalid drop` in the forward chain, as firewalls have it.
    pub drop_invalid: bool,
    /// True if bridged packets go through netfilter (`bridge-nf-call-iptables`).
    pub bridge_netfilter: bool,
}

impl Default for Topology {
    fn default() -> Self {
        Self::ONE_NODE
    }
}

/// The network between nodes and external clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnderlayKind {
    /// One switch; everybody is everybody's neighbour.
    Lan,
    /// Every host has a router of its own, and the links between the routers
    /// have this MTU: less than the hosts know about, so a path to discover.
    Routed { mtu: u16 },
}

/// The network that carries packets of pods from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// Plain routes by way of the nodes (flannel's `host-gw`, Calico's BGP).
    Routes,
    /// flannel's VXLAN: IPv4 pods over IPv4, IPv6 pods over IPv6.
    Vxlan,
}

/// The connection of a pod to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// A veth pair and a host route for the pod's addresses; the node's end
    /// has no address and answers ARP for 169.254.1.1 (Calico, GKE, AWS).
    RoutedVeth,
    /// A port of the node's bridge `cni0`, which has the gateway addresses
    /// (flannel, kindnet's bridge mode, kubenet).
    Bridge,
}

impl Topology {
    /// The default, for constants.
    pub const ONE_NODE: Self = Self {
        families: Families::Dual,
        nodes: 1,
        underlay: UnderlayKind::Lan,
        pod_network: PodNetwork::Routes,
        wiring: Wiring::RoutedVeth,
        masquerade: false,
        drop_invalid: false,
        bridge_netfilter: false,
    };

    /// Two nodes joined by flannel, as its manifest sets it up: bridge, VXLAN
    /// and masquerade rules.
    pub const FLANNEL: Self = Self {
        nodes: 2,
        pod_network: PodNetwork::Vxlan,
        wiring: Wiring::Bridge,
        masquerade: true,
        bridge_netfilter: true,
        ..Self::ONE_NODE
    };

    /// Two nodes joined by plain routes, pods on routed veths.
    pub const ROUTED: Self = Self {
        nodes: 2,
        ..Self::ONE_NODE
    };

    /// The MTU of a pod's `eth0`: what flannel leaves of the underlay's.
    pub fn pod_mtu(&self) -> u16 {
        match self.pod_network {
            PodNetwork::Routes => 1500,
            PodNetwork::Vxlan => 1450,
        }
    }
}
