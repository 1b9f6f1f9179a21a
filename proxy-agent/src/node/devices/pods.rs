//! Recognition of devices that lead to pods of this node.

use std::net::IpAddr;

use ipnet::IpNet;

use super::link::{Address, Routes};

/// Returns whether a route leads to pods by this device: to an address or range
/// within those of pods, or where these are not known, to a single address
/// that is not the node's own.
pub(super) fn lead_to_pods(routes: &Routes, ifindex: u32, pods: &[IpNet], own: &[Address]) -> bool {
    let destinations = routes.on_link.get(&ifindex).into_iter().flatten();
    let is_single = |destination: &IpNet| destination.prefix_len() == destination.max_prefix_len();
    let is_own = |ip: IpAddr| own.iter().any(|address| address.ip == ip);
    let mut foreign =
        destinations.filter(|destination| !(is_single(destination) && is_own(destination.addr())));
    foreign.any(|destination| {
        let is_same_family =
            |range: &&IpNet| range.addr().is_ipv4() == destination.addr().is_ipv4();
        let mut ranges = pods.iter().filter(is_same_family).peekable();
        if ranges.peek().is_none() {
            is_single(destination)
        } else {
            ranges.any(|range| range.contains(destination))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proxy_common::device::Device;

    use super::{
        super::{
            desired::{Inputs, desired},
            fixtures::{self, addresses, inputs, node},
        },
        *,
    };
    use crate::config::LocalDetector;

    /// A device of which nothing is known leads to no pods: it may be a second
    /// network of the node, or a VRRP address on a macvlan.
    #[test]
    fn devices_lead_to_pods_that_are_known() {
        let nets = |text: &str| -> Vec<IpNet> {
            let words = text.split_whitespace();
            words.map(|net| net.parse().expect("a prefix")).collect()
        };
        let flagged = |detector: &LocalDetector, on_link: &[(u32, &str)], pods: &str| {
            let on_link = on_link.iter().map(|(ifindex, destinations)| {
                (*ifindex, nets(destinations).into_iter().collect())
            });
            let inputs = Inputs {
                detector,
                routes: &Routes {
                    gateways: BTreeSet::from([2]),
                    on_link: on_link.collect(),
                },
                pods: &nets(pods),
                ..inputs()
            };
            let desired = desired(&node(), &addresses(), &inputs);
            fixtures::flagged(&desired, Device::POD_ROUTES)
        };
        let by_address = LocalDetector::NodeCidr;
        let pods = "10.244.0.0/16 fd00:244::/48";
        assert_eq!(flagged(&by_address, &[], pods), [0; 0]);
        let subnets = [(3, "10.244.1.0/24"), (5, "198.51.100.0/24")];
        assert_eq!(
            flagged(&by_address, &subnets, pods),
            [3, 4],
            "a bridge and its port"
        );
        let v6 = [(3, "fd00:244::/64"), (5, "2001:db8::/64 fe80::/64")];
        assert_eq!(flagged(&by_address, &v6, pods), [3, 4]);
        let single = [(5, "10.244.1.9/32"), (4, "192.0.2.1/32")];
        assert_eq!(flagged(&by_address, &single, pods), [5]);
        assert_eq!(
            flagged(&by_address, &single, ""),
            [5],
            "routes to ports do not count"
        );
        assert_eq!(flagged(&by_address, &subnets, ""), [0; 0]);
        let own = [(5, "fd00:244::1/128")];
        assert_eq!(flagged(&by_address, &own, ""), [0; 0]);
        let uplink = [(2, "10.244.1.9/32")];
        assert_eq!(flagged(&by_address, &uplink, pods), [0; 0]);
        let bridge = LocalDetector::BridgeInterface("cni0".to_owned());
        assert_eq!(flagged(&bridge, &[], ""), [3, 4]);
    }
}
