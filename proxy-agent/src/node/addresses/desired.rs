//! The desired entries of `LOCAL_ADDRS`: the node's own addresses, and on which of
//! them NodePorts are served.
//!
//! Pure: from the local routing table and `--nodeport-addresses` to entries.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use proxy_common::local_addr::LocalAddr;

use crate::{
    config::node_ports::{Accepted, LOOPBACK_V4, LOOPBACK_V6},
    dataplane::local_addrs::Entries,
    health::serve::Listen,
    model::IpFamily,
};

/// Returns the entries for the prefixes in the local routing table. Prefixes stay
/// prefixes: all of their addresses are the node's (E25). Where NodePorts are
/// served on a part of one only, the part gets an entry of its own.
pub fn entries<'a>(local: &[IpNet], accepted: impl Fn(IpFamily) -> &'a Accepted) -> Entries {
    let mut entries = Entries::new();
    for &prefix in local.iter().filter(|prefix| !is_link_local(prefix)) {
        let flags = if is_loopback(&prefix) {
            LocalAddr::LOOPBACK
        } else {
            0
        };
        let taken = LocalAddr {
            flags: flags | LocalAddr::NODE_PORTS,
        };
        let cidrs = match accepted(IpFamily::of(prefix.addr())) {
            Accepted::All => {
                entries.insert(prefix, taken);
                continue;
            }
            Accepted::Within(cidrs) => cidrs,
        };
        let whole = cidrs.iter().any(|cidr| cidr.contains(&prefix));
        entries.insert(prefix, if whole { taken } else { LocalAddr { flags } });
        if !whole {
            let parts = cidrs.iter().filter(|cidr| prefix.contains(*cidr));
            entries.extend(parts.map(|part| (*part, taken)));
        }
    }
    entries
}

/// IPv6 link-local addresses are the same on many devices, and no address of
/// the node (E25).
fn is_link_local(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(_) => false,
        IpNet::V6(prefix) => prefix.addr().is_unicast_link_local(),
    }
}

fn is_loopback(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => LOOPBACK_V4.contains(prefix),
        IpNet::V6(prefix) => LOOPBACK_V6.contains(prefix),
    }
}

/// Returns the addresses to listen on for clients of NodePorts: one by one, where
/// not all take them. Prefixes are left out; nobody can listen on one.
pub fn listen(entries: &Entries, accepted: &Accepted) -> Listen {
    match accepted {
        Accepted::All => Listen::Any,
        Accepted::Within(_) => {
            let takes = entries.iter().filter(|(prefix, value)| {
                prefix.prefix_len() == prefix.max_prefix_len()
                    && value.flags & LocalAddr::NODE_PORTS != 0
            });
            let ips = takes.map(|(prefix, _)| prefix.addr());
            Listen::Only(ips.filter(|ip| accepted.contains(*ip)).collect())
        }
    }
}

/// Leaves out the prefixes of one family that a table of `room` entries cannot hold, and
/// returns their number. Those of devices with few addresses are kept first, such as
/// network cards; then those of devices with thousands, such as IPVS leaves behind;
/// then those of no device.
pub fn fit(
    entries: &mut Entries,
    family: IpFamily,
    room: usize,
    devices: impl IntoIterator<Item = (u32, IpAddr)>,
) -> usize {
    let of_family = |prefix: &&IpNet| IpFamily::of(prefix.addr()) == family;
    let surplus = entries
        .keys()
        .filter(of_family)
        .count()
        .saturating_sub(room);
    if surplus == 0 {
        return 0;
    }
    let devices: Vec<_> = devices.into_iter().collect();
    let mut counts = BTreeMap::<u32, usize>::new();
    for (ifindex, _) in &devices {
        *counts.entry(*ifindex).or_default() += 1;
    }
    let ranks: BTreeMap<IpAddr, usize> = devices
        .iter()
        .map(|(ifindex, ip)| (*ip, counts[ifindex]))
        .collect();
    let mut prefixes: Vec<IpNet> = entries.keys().filter(of_family).copied().collect();
    prefixes.sort_by_key(|prefix| {
        let is_host = prefix.prefix_len() == prefix.max_prefix_len();
        let rank = ranks.get(&prefix.addr()).filter(|_| is_host);
        (!is_loopback(prefix), rank.copied().unwrap_or(usize::MAX))
    });
    for prefix in &prefixes[room..] {
        entries.remove(prefix);
    }
    surplus
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::config::node_ports::NodePortAddresses;

    fn nets(text: &str) -> Vec<IpNet> {
        let words = text.split_whitespace();
        words.map(|net| net.parse().expect("a prefix")).collect()
    }

    /// Thousands of prefixes must not push out a node's own address.
    #[test]
    fn the_nodes_own_addresses_come_first() {
        let local = "10.96.0.1/32 10.96.0.2/32 10.96.0.3/32 100.64.0.0/24 127.0.0.0/8 \
                     192.0.2.1/32 203.0.113.1/32 2001:db8::1/128 fd00::1/128";
        let devices = [
            (2, "192.0.2.1"),
            (2, "2001:db8::1"),
            (3, "203.0.113.1"),
            (9, "10.96.0.1"),
            (9, "10.96.0.2"),
            (9, "10.96.0.3"),
            (9, "fd00::1"),
        ];
        let devices = devices.map(|(ifindex, ip)| (ifindex, ip.parse().expect("an address")));
        let mut fitted = entries(&nets(local), |_| &Accepted::All);
        assert_eq!(
            fit(&mut fitted, IpFamily::V4, 7, devices),
            0,
            "there is room"
        );
        assert_eq!(fit(&mut fitted, IpFamily::V4, 3, devices), 4);
        assert_eq!(fit(&mut fitted, IpFamily::V6, 1, devices), 1);
        let left: Vec<_> = fitted.keys().map(ToString::to_string).collect();
        assert_eq!(
            left,
            [
                "127.0.0.0/8",
                "192.0.2.1/32",
                "203.0.113.1/32",
                "2001:db8::1/128"
            ]
        );
    }

    /// The entries as text: `n` takes NodePorts, `l` is of the loopback.
    fn table(local: &str, flag: &str) -> String {
        let flag: NodePortAddresses = flag.parse().expect("valid");
        let [v4, v6] = IpFamily::ALL.map(|family| flag.accepted(family, None));
        let entries = entries(&nets(local), |family| match family {
            IpFamily::V4 => &v4,
            IpFamily::V6 => &v6,
        });
        let text = entries.iter().map(|(prefix, value)| {
            let flag = |bit, letter| if value.flags & bit != 0 { letter } else { "" };
            let loopback = flag(LocalAddr::LOOPBACK, "l");
            format!("{prefix}={}{loopback}", flag(LocalAddr::NODE_PORTS, "n"))
        });
        text.collect::<Vec<_>>().join(" ")
    }

    const NODE: &str = "127.0.0.0/8 127.0.0.1/32 192.0.2.1/32 10.9.0.0/24 \
                        ::1/128 2001:db8::1/128 fe80::1/128 fd09::/64";

    #[rstest]
    #[case::all(
        "",
        "10.9.0.0/24=n 127.0.0.0/8=nl 127.0.0.1/32=nl 192.0.2.1/32=n \
         ::1/128=nl 2001:db8::1/128=n fd09::/64=n"
    )]
    #[case::prefixes_in_part(
        "10.9.0.16/28,192.0.0.0/8,fd09:0:0:0:1::/80",
        "10.9.0.0/24= 10.9.0.16/28=n 127.0.0.0/8=l 127.0.0.1/32=l 192.0.2.1/32=n \
         ::1/128=l 2001:db8::1/128= fd09::/64= fd09::1:0:0:0/80=n"
    )]
    #[case::loopback(
        "localhost",
        "10.9.0.0/24= 127.0.0.0/8=nl 127.0.0.1/32=nl 192.0.2.1/32= \
         ::1/128=nl 2001:db8::1/128= fd09::/64="
    )]
    #[case::one_loopback_address(
        "127.0.0.1/32,2001:db8::1/128",
        "10.9.0.0/24= 127.0.0.0/8=l 127.0.0.1/32=nl 192.0.2.1/32= \
         ::1/128=l 2001:db8::1/128=n fd09::/64="
    )]
    fn flags_addresses_and_parts_of_prefixes(#[case] flag: &str, #[case] expected: &str) {
        assert_eq!(table(NODE, flag), expected);
    }

    /// Health check ports are listened on in each family by itself (S113).
    #[test]
    fn health_checks_are_asked_for_where_node_ports_are() {
        let flag: NodePortAddresses = "192.0.2.0/24,10.9.0.0/16,::1/128".parse().expect("valid");
        let [v4, v6] = IpFamily::ALL.map(|family| flag.accepted(family, None));
        let entries = entries(&nets(NODE), |family| match family {
            IpFamily::V4 => &v4,
            IpFamily::V6 => &v6,
        });
        let only = |ip: &str| Listen::Only([ip.parse().expect("an address")].into());
        assert_eq!(listen(&entries, &v4), only("192.0.2.1"));
        assert_eq!(listen(&entries, &v6), only("::1"));
        assert_eq!(listen(&entries, &Accepted::All), Listen::Any);
    }

    /// A prefix within an accepted part of another is accepted, one beside it
    /// is not.
    #[test]
    fn prefixes_within_prefixes_count_for_themselves() {
        assert_eq!(
            table("10.9.0.0/16 10.9.1.1/32 10.9.2.1/32", "10.9.1.0/24"),
            "10.9.0.0/16= 10.9.1.0/24=n 10.9.1.1/32=n 10.9.2.1/32="
        );
    }
}
