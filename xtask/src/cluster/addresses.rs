//! Which addresses a cluster has: a plan, the same for every cluster, because
//! each is in network namespaces of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::spec::{Cni, Family};

/// The most nodes that the plan has room for.
pub(crate) const NODES: u8 = 99;

/// Where the plan's node addresses begin: node 1 has the next one.
const FIRST: u8 = 10;

/// A range of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Range {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

const fn range(address: IpAddr, length: u8) -> Range {
    Range { address, length }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(site: u16, subnet: u16, high: u16, low: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, site, subnet, 0, 0, 0, high, low))
}

/// The network that joins the nodes.
pub(crate) const fn underlay(family: Family) -> Range {
    match family {
        Family::V4 => range(v4(172, 30, 0, 0), 16),
        Family::V6 => range(v6(0x30, 0, 0, 0), 64),
    }
}

/// The way out of the cluster: to a host outside, and nowhere else.
pub(crate) const fn gateway(family: Family) -> IpAddr {
    host(family, 1)
}

/// The network outside of the cluster.
pub(crate) const fn outside_network(family: Family) -> Range {
    match family {
        Family::V4 => range(v4(172, 29, 0, 0), 24),
        Family::V6 => range(v6(0x29, 0, 0, 0), 64),
    }
}

/// The router's address there.
pub(crate) const fn outside_gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => v4(172, 29, 0, 1),
        Family::V6 => v6(0x29, 0, 0, 1),
    }
}

/// The host outside.
pub(crate) const fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => v4(172, 29, 0, 2),
        Family::V6 => v6(0x29, 0, 0, 2),
    }
}

/// The addresses of load balancers, which the router sends to nodes.
pub(crate) const fn load_balancer(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => v4(172, 28, 0, number),
        Family::V6 => v6(0x28, 0, 0, number as u16),
    }
}

/// The host of the control plane.
pub(crate) const fn control_plane(family: Family) -> IpAddr {
    host(family, FIRST)
}

/// The node with a number from 1 on.
pub(crate) const fn node(family: Family, number: u8) -> IpAddr {
    host(family, FIRST + number)
}

/// The pods of a node. Those with a device on the underlay have addresses of
/// the underlay, where all others route to the node.
pub(crate) const fn pods(family: Family, cni: Cni, number: u8) -> Range {
    let on_link = matches!(cni, Cni::Macvlan);
    match family {
        Family::V4 if on_link => range(v4(172, 30, number, 0), 24),
        Family::V6 if on_link => range(v6(0x30, 0, number as u16, 0), 112),
        Family::V4 => range(v4(10, 244, number, 0), 24),
        Family::V6 => range(v6(0x10, 0x244, 0, 0), 64).subnet(number),
    }
}

/// All pods.
pub(crate) const fn all_pods(family: Family, cni: Cni) -> Range {
    match (family, cni) {
        (_, Cni::Macvlan) => underlay(family),
        (Family::V4, _) => range(v4(10, 244, 0, 0), 16),
        (Family::V6, _) => range(v6(0x10, 0x244, 0, 0), 48),
    }
}

/// The addresses for cluster IPs.
pub(crate) const fn services(family: Family) -> Range {
    match family {
        Family::V4 => range(v4(10, 96, 0, 0), 16),
        Family::V6 => range(v6(0x10, 0x96, 0, 0), 112),
    }
}

/// The cluster IP of the Service `kubernetes`, the first of its range.
pub(crate) const fn api_service(family: Family) -> IpAddr {
    match family {
        Family::V4 => v4(10, 96, 0, 1),
        Family::V6 => v6(0x10, 0x96, 0, 1),
    }
}

/// The cluster IP of the cluster's DNS server.
pub(crate) const fn dns(family: Family) -> IpAddr {
    match family {
        Family::V4 => v4(10, 96, 0, 10),
        Family::V6 => v6(0x10, 0x96, 0, 10),
    }
}

/// The first and the last address of a range that a host may have.
pub(crate) fn first_and_last(range: Range) -> (IpAddr, IpAddr) {
    match range.address {
        IpAddr::V4(address) => {
            let size = 1 << (32 - range.length);
            let at = |offset| Ipv4Addr::from_bits(address.to_bits() + offset).into();
            (at(1), at(size - 2))
        }
        IpAddr::V6(address) => {
            let size = 1 << (128 - range.length);
            let at = |offset| Ipv6Addr::from_bits(address.to_bits() + offset).into();
            (at(1), at(size - 2))
        }
    }
}

const fn host(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => v4(172, 30, 0, number),
        Family::V6 => v6(0x30, 0, 0, number as u16),
    }
}

impl Range {
    /// The /64 with this number in a /48.
    const fn subnet(self, number: u8) -> Self {
        let IpAddr::V6(address) = self.address else {
            return self;
        };
        let [a, b, c, ..] = address.segments();
        let address = Ipv6Addr::new(a, b, c, number as u16, 0, 0, 0, 0);
        range(IpAddr::V6(address), self.length)
    }

    #[cfg(test)]
    fn contains(self, address: IpAddr) -> bool {
        let bits = |address| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        self.address.is_ipv4() == address.is_ipv4()
            && (bits(self.address) ^ bits(address)) >> (128 - u32::from(self.length)) == 0
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Family::V4, "172.30.0.13", "10.244.3.0/24")]
    #[case(Family::V6, "fd00:30::d", "fd00:10:244:3::/64")]
    fn a_node_and_its_pods(#[case] family: Family, #[case] address: &str, #[case] range: &str) {
        assert_eq!(node(family, 3).to_string(), address);
        assert_eq!(pods(family, Cni::Ptp, 3).to_string(), range);
    }

    #[rstest]
    fn every_nodes_pods_are_among_all_pods(
        #[values(Family::V4, Family::V6)] family: Family,
        #[values(Cni::Ptp, Cni::FlannelVxlan, Cni::Macvlan)] cni: Cni,
    ) {
        for number in 1..=NODES {
            let pods = pods(family, cni, number);
            assert!(all_pods(family, cni).contains(pods.address), "{pods}");
            for other in 1..=NODES {
                let inside = pods.contains(super::pods(family, cni, other).address);
                assert_eq!(inside, number == other, "{number} and {other}");
                assert!(
                    !pods.contains(node(family, other)),
                    "node {other} in {pods}"
                );
            }
        }
    }

    #[rstest]
    fn the_fixed_cluster_ips_are_in_the_range(#[values(Family::V4, Family::V6)] family: Family) {
        assert!(services(family).contains(api_service(family)));
        assert!(services(family).contains(dns(family)));
    }

    #[rstest]
    fn hosts_are_on_the_underlay(#[values(Family::V4, Family::V6)] family: Family) {
        let hosts = [gateway(family), control_plane(family), node(family, NODES)];
        for host in hosts {
            assert!(underlay(family).contains(host), "{host}");
        }
        let others = [outside_gateway(family), outside(family)];
        for host in others {
            assert!(outside_network(family).contains(host), "{host}");
            assert!(!underlay(family).contains(host), "{host}");
        }
        assert!(!underlay(family).contains(load_balancer(family, 1)));
    }
}
