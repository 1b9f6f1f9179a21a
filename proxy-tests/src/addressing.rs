//! Every address of a lab. They exist only inside its namespaces, so all labs
//! use the same ones.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | LAN segment s, gateway .1 | 192.168.(77+s).0/24 | `fd77:0:0:s::/64` |
//! | node n | .(10+n) | ::(10+n) |
//! | external client e | .(99+e) | ::(99+e) |
//! | pods of node n, gateway .1 | 10.244.n.0/24 | `fd00:10:244:n::/64` |
//! | Services | 10.96.0.0/16 | `fd00:10:96::/112` |
//! | load balancers and external IPs | 203.0.113.0/24 | `2001:db8:71::/64` |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::family::Family;

/// The address the node's end of a routed veth answers ARP for.
pub const LINK_LOCAL_GATEWAY: &str = "169.254.1.1";
/// The hardware address of every such end, and the IPv6 gateway made from it.
pub const VETH_MAC: &str = "ee:ee:ee:ee:ee:ee";
pub const VETH_GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";

/// Host `number` on LAN segment `segment`.
pub fn lan(family: Family, segment: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 77 + segment, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, hextet(segment), 0, 0, 0, hextet(number)).into(),
    }
}

/// Pod `number` of node `node`, counted from 1; number 1 is the gateway, and
/// number 0 the address of the node's VXLAN device.
pub fn pod(family: Family, node: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, number).into(),
        Family::V6 => Ipv6Addr::new(
            0xfd00,
            0x10,
            0x244,
            u16::from(node),
            0,
            0,
            0,
            hextet(number),
        )
        .into(),
    }
}

/// Returns whether `address` is one of the pods of node `node`.
pub fn is_pod_of(node: u8, address: IpAddr) -> bool {
    match (address, pod(Family::of(address), node, 0)) {
        (IpAddr::V4(address), IpAddr::V4(first)) => address.octets()[..3] == first.octets()[..3],
        (IpAddr::V6(address), IpAddr::V6(first)) => {
            address.segments()[..4] == first.segments()[..4]
        }
        _ => false,
    }
}

/// The cluster IP `number`.
pub fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, hextet(number)).into(),
    }
}

/// An address that no device of any host has, for load balancers and external
/// IPs.
pub fn public(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x71, 0, 0, 0, 0, hextet(number)).into(),
    }
}

/// The pods of one node.
pub fn pod_cidr(family: Family, node: u8) -> String {
    format!("{}/{}", pod(family, node, 0), subnet_length(family))
}

/// The pods of all nodes, as `--cluster-cidr` wants them.
pub fn cluster_cidr(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:10:244::/56",
    }
}

/// All cluster IPs.
pub fn service_cidr(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.0/16",
        Family::V6 => "fd00:10:96::/112",
    }
}

/// Prefix length of a LAN segment and of a node's pods.
pub fn subnet_length(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// Prefix length of a single address.
pub fn host_length(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

/// Any address: `0.0.0.0` or `::`.
pub fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Decimal digits written as they read, so that 192.168.77.12 is `fd77::12`.
fn hextet(decimal: u8) -> u16 {
    let decimal = u16::from(decimal);
    0x100 * (decimal / 100) + 0x10 * (decimal / 10 % 10) + decimal % 10
}
