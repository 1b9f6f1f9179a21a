//! A node for tests of its devices.

use std::collections::{BTreeMap, BTreeSet};

use super::{Address, Desired, Inputs, Layer, Link, LinkKind, Routes};
use crate::config::LocalDetector;

static DETECTOR: LocalDetector = LocalDetector::NodeCidr;
static ROUTES: Routes = Routes {
    gateways: BTreeSet::new(),
    on_link: BTreeMap::new(),
};

/// Inputs of a node without routes, pods and Node object.
pub(in crate::node) fn inputs() -> Inputs<'static> {
    Inputs {
        detector: &DETECTOR,
        routes: &ROUTES,
        pods: &[],
        node_v4: None,
        node_v6: None,
    }
}

/// The devices that have a flag.
pub(in crate::node) fn flagged(desired: &Desired, flag: u32) -> Vec<u32> {
    let flagged = desired
        .iter()
        .filter(|(_, each)| each.device.flags & flag != 0);
    flagged.map(|(ifindex, _)| *ifindex).collect()
}

pub(in crate::node) fn link(ifindex: u32, name: &str) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        layer: Layer::Ethernet,
        master: None,
        kind: LinkKind::Other,
        mac: [2, 0, 0, 0, 0, u8::try_from(ifindex).expect("small")],
        vlan: None,
        is_up: true,
    }
}

pub(in crate::node) fn address(ifindex: u32, ip: &str) -> Address {
    Address {
        ifindex,
        ip: ip.parse().expect("an address"),
        prefix_len: 24,
        usable: true,
        link_local: false,
    }
}

pub(in crate::node) fn node() -> Vec<Link> {
    vec![
        Link {
            layer: Layer::Loopback,
            ..link(1, "lo")
        },
        link(2, "eth0"),
        Link {
            kind: LinkKind::Bridge,
            ..link(3, "cni0")
        },
        Link {
            master: Some(3),
            ..link(4, "veth1")
        },
        Link {
            layer: Layer::Ip,
            ..link(5, "wg0")
        },
        Link {
            layer: Layer::Other,
            ..link(6, "can0")
        },
        Link {
            kind: LinkKind::Ifb,
            ..link(7, "ifb0")
        },
    ]
}

pub(in crate::node) fn addresses() -> Vec<Address> {
    vec![
        address(1, "127.0.0.1"),
        address(2, "192.168.1.2"),
        address(2, "fd00::2"),
        address(3, "10.244.0.1"),
        address(3, "fd00:244::1"),
    ]
}
