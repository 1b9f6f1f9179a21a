//! `--nodeport-addresses`: on which addresses of the node NodePorts are served
//! on (S52–S54).

use std::{net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy_common::family::{V4, V6};

use crate::model::{IpFamily, Node, address::parse_cidr};

/// The value of the flag, and whether the loopback is among the addresses. Empty, as by
/// default, means all addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortAddresses {
    entries: Vec<Entry>,
    without_loopback: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Cidr(IpNet),
    /// The Node object's address of each family.
    Primary,
}

/// The addresses of one family that take NodePorts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Every address the node has, the loopback's included.
    All,
    /// The node's addresses within these prefixes, maybe none.
    Within(Vec<IpNet>),
}

/// An error in the value of `--nodeport-addresses`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a CIDR, and none of the keywords primary, localhost and all")]
pub struct NodePortAddressError(String);

/// The addresses that only the node's own processes reach.
pub const LOOPBACK_V4: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
pub const LOOPBACK_V6: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressError;

    /// Reads CIDRs and keywords with commas between them (S54).
    fn from_str(raw: &str) -> Result<Self, NodePortAddressError> {
        let mut entries = Vec::new();
        if raw.trim().is_empty() {
            return Ok(Self::default());
        }
        for word in raw.split(',').map(str::trim) {
            let both = |v4: Ipv4Net, v6: Ipv6Net| [v4.into(), v6.into()].map(Entry::Cidr);
            match word {
                "primary" => entries.push(Entry::Primary),
                "localhost" => entries.extend(both(LOOPBACK_V4, LOOPBACK_V6)),
                "all" => entries.extend(both(Ipv4Net::default(), Ipv6Net::default())),
                cidr => match parse_cidr(cidr) {
                    Some(cidr) => entries.push(Entry::Cidr(cidr)),
                    None => return Err(NodePortAddressError(cidr.to_owned())),
                },
            }
        }
        Ok(Self {
            entries,
            without_loopback: false,
        })
    }
}

impl NodePortAddresses {
    /// The same without the loopback, whatever the list says (S56).
    #[must_use]
    pub fn without_loopback(self) -> Self {
        Self {
            without_loopback: true,
            ..self
        }
    }

    /// The entries as the flag names them.
    pub fn words(&self) -> Vec<String> {
        let word = |entry: &Entry| match entry {
            Entry::Cidr(cidr) => cidr.to_string(),
            Entry::Primary => "primary".to_owned(),
        };
        self.entries.iter().map(word).collect()
    }

    /// Returns whether the Node object has to be known to tell.
    pub fn needs_node(&self) -> bool {
        self.entries.contains(&Entry::Primary)
    }

    /// Returns which addresses of a family take NodePorts. A family for which the flag
    /// names nothing, also because the node's own address is unknown, takes
    /// them on all (S52, S53).
    pub fn accepted(&self, family: IpFamily, node: Option<&Node>) -> Accepted {
        let cidr = |entry: &Entry| match *entry {
            Entry::Cidr(cidr) => Some(cidr),
            Entry::Primary => primary(family, node?).map(IpNet::from),
        };
        let mut cidrs: Vec<IpNet> = self.entries.iter().filter_map(cidr).collect();
        cidrs.retain(|cidr| IpFamily::of(cidr.addr()) == family);
        let all = cidrs.is_empty() || cidrs.iter().any(|cidr| cidr.prefix_len() == 0);
        let (everything, loopback): (IpNet, IpNet) = match family {
            IpFamily::V4 => (Ipv4Net::default().into(), LOOPBACK_V4.into()),
            IpFamily::V6 => (Ipv6Net::default().into(), LOOPBACK_V6.into()),
        };
        match (all, self.without_loopback) {
            (true, false) => Accepted::All,
            (true, true) => Accepted::Within(without(everything, loopback)),
            (false, false) => Accepted::Within(cidrs),
            (false, true) => {
                let cidrs = cidrs.into_iter();
                Accepted::Within(cidrs.flat_map(|cidr| without(cidr, loopback)).collect())
            }
        }
    }
}

/// Returns the prefixes that a prefix consists of without another.
fn without(whole: IpNet, part: IpNet) -> Vec<IpNet> {
    if part.contains(&whole) {
        return Vec::new();
    }
    if !whole.contains(&part) {
        return vec![whole];
    }
    let halves = whole.subnets(whole.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, part)).collect()
}

/// The node's own address of a family, unless it is a loopback address (S53).
fn primary(family: IpFamily, node: &Node) -> Option<IpAddr> {
    let ip: IpAddr = match family {
        IpFamily::V4 => node.ip::<V4>()?.into(),
        IpFamily::V6 => node.ip::<V6>()?.into(),
    };
    (!ip.is_loopback()).then_some(ip)
}

impl Accepted {
    /// Returns whether an address takes NodePorts, if the node has it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Within(cidrs) => cidrs.iter().any(|cidr| cidr.contains(&ip)),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::{
        ObjectKey,
        node::{NodeAddress, NodeAddressKind},
    };

    fn node(addresses: &[(NodeAddressKind, &str)]) -> Node {
        Node {
            key: ObjectKey::new("", "node-0"),
            zone: None,
            pod_cidrs: Vec::new(),
            addresses: addresses
                .iter()
                .map(|(kind, ip)| NodeAddress {
                    kind: *kind,
                    ip: ip.parse().expect("an address"),
                })
                .collect(),
            leaving: None,
        }
    }

    fn accepted(flag: &str, family: IpFamily, node: Option<&Node>) -> Accepted {
        let flag: NodePortAddresses = flag.parse().expect("valid");
        flag.accepted(family, node)
    }

    /// The addresses of a family among `addresses` that take NodePorts; `*`
    /// first if all do that the node will ever have.
    fn taken(flag: &str, family: IpFamily, addresses: &str) -> String {
        let accepted = accepted(flag, family, None);
        let all = (accepted == Accepted::All).then_some("*");
        let addresses = addresses.split(' ').filter(|text| {
            let ip: IpAddr = text.parse().expect("an address");
            IpFamily::of(ip) == family && accepted.contains(ip)
        });
        all.into_iter()
            .chain(addresses)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// S52, upstream's table.
    #[rstest]
    #[case::ipv4_single("10.20.30.0/24", "10.20.30.51 100.200.201.1", "10.20.30.51", "*")]
    #[case::ipv4_zero("0.0.0.0/0", "10.20.30.51 127.0.0.1", "* 10.20.30.51 127.0.0.1", "*")]
    #[case::ipv6_multiple("2001:db8::/64,::1/128", "2001:db8::1 ::1", "*", "2001:db8::1 ::1")]
    #[case::ipv6_zero("::/0", "2001:db8::1 ::1", "*", "* 2001:db8::1 ::1")]
    #[case::localhost_exact("127.0.0.1/32", "10.20.30.51 127.0.0.1", "127.0.0.1", "*")]
    #[case::localhost_subnet("127.0.0.0/8", "127.0.1.1", "127.0.1.1", "*")]
    #[case::ipv4_multiple(
        "10.20.30.0/24,100.200.201.0/24",
        "10.20.30.51 100.200.201.1",
        "10.20.30.51 100.200.201.1",
        "*"
    )]
    #[case::no_match("10.20.30.0/24,100.200.201.0/24", "192.168.1.2 127.0.0.1", "", "*")]
    #[case::empty_ipv4("", "192.168.1.2 127.0.0.1", "* 192.168.1.2 127.0.0.1", "*")]
    #[case::empty_ipv6("", "2001:db8::1 ::1", "*", "* 2001:db8::1 ::1")]
    #[case::redundant("1.2.3.0/24,0.0.0.0/0", "1.2.3.4", "* 1.2.3.4", "*")]
    #[case::dual_redundant_ipv4(
        "0.0.0.0/0,1.2.3.0/24,2001:db8::1/128",
        "1.2.3.4 2001:db8::1 127.0.0.1 ::1",
        "* 1.2.3.4 127.0.0.1",
        "2001:db8::1"
    )]
    #[case::dual_redundant_ipv6(
        "::/0,1.2.3.0/24,2001:db8::1/128",
        "1.2.3.4 2001:db8::1 127.0.0.1 ::1",
        "1.2.3.4",
        "* 2001:db8::1 ::1"
    )]
    #[case::keyword_all("all,10.0.0.0/8", "192.0.2.1 ::1", "* 192.0.2.1", "* ::1")]
    #[case::keyword_localhost(
        "localhost",
        "127.0.0.9 192.0.2.1 ::1 2001:db8::1",
        "127.0.0.9",
        "::1"
    )]
    fn takes_addresses_as_kube_proxy_does(
        #[case] flag: &str,
        #[case] addresses: &str,
        #[case] v4: &str,
        #[case] v6: &str,
    ) {
        assert_eq!(taken(flag, IpFamily::V4, addresses), v4);
        assert_eq!(taken(flag, IpFamily::V6, addresses), v6);
    }

    /// S56: whether some loopback address is among them, upstream's table, and
    /// the same question for IPv6.
    #[rstest]
    #[case::empty("", true, true)]
    #[case::zero_v4("224.0.0.0/24,192.168.0.0/16,fd00:1:d::/64,0.0.0.0/0", true, false)]
    #[case::zero_v6("224.0.0.0/24,192.168.0.0/16,fd00:1:d::/64,::/0", false, true)]
    #[case::loopback_v4("192.168.0.0/16,fd00:1:d::/64,127.0.0.0/8", true, false)]
    #[case::loopback_v6("192.168.0.0/16,fd00:1:d::/64,::1/128", false, true)]
    #[case::smaller("192.168.0.0/16,fd00:1:d::/64,127.0.2.0/28", true, false)]
    #[case::larger("192.168.0.0/16,fd00:1:d::/64,64.0.0.0/2", true, false)]
    #[case::none("128.0.2.0/28,192.168.0.0/16,fd00:1:d::/64", false, false)]
    fn the_loopback_is_asked_for_as_any_address(
        #[case] flag: &str,
        #[case] v4: bool,
        #[case] v6: bool,
    ) {
        let overlaps = |family, loopback: IpNet| match accepted(flag, family, None) {
            Accepted::All => true,
            Accepted::Within(cidrs) => cidrs
                .iter()
                .any(|cidr| cidr.contains(&loopback) || loopback.contains(cidr)),
        };
        assert_eq!(overlaps(IpFamily::V4, LOOPBACK_V4.into()), v4);
        assert_eq!(overlaps(IpFamily::V6, LOOPBACK_V6.into()), v6);
    }

    /// A node's address is its first `InternalIP`, else its first `ExternalIP` (S53).
    #[test]
    fn primary_is_the_nodes_own_address() {
        use NodeAddressKind::{External, Internal};

        let dual = node(&[
            (External, "198.51.100.1"),
            (Internal, "10.0.0.1"),
            (Internal, "10.0.0.2"),
            (External, "2001:db8::1"),
        ]);
        let within = |cidr: &str| Accepted::Within(vec![cidr.parse().expect("CIDR")]);
        let primary = |family, node| accepted("primary", family, node);
        assert_eq!(primary(IpFamily::V4, Some(&dual)), within("10.0.0.1/32"));
        assert_eq!(
            primary(IpFamily::V6, Some(&dual)),
            within("2001:db8::1/128")
        );
        let v4 = node(&[(Internal, "10.0.0.1")]);
        assert_eq!(primary(IpFamily::V6, Some(&v4)), Accepted::All);
        let loopback = node(&[(Internal, "127.0.0.1"), (Internal, "::1")]);
        for family in IpFamily::ALL {
            assert_eq!(primary(family, Some(&loopback)), Accepted::All);
            assert_eq!(primary(family, None), Accepted::All);
        }
    }

    /// Without the loopback, nothing of it is left in either family, and all else is (S56).
    #[rstest]
    #[case::all("")]
    #[case::zero("0.0.0.0/0,::/0")]
    #[case::larger("64.0.0.0/2,::/1,128.0.0.0/1,8000::/1,0.0.0.0/2")]
    #[case::named("all,localhost")]
    #[case::part("127.0.0.0/28,::1/128,128.0.0.0/1,64.0.0.0/2,0.0.0.0/2,::/0")]
    fn the_loopback_can_be_left_out(#[case] flag: &str) {
        let flag: NodePortAddresses = flag.parse().expect("valid");
        let flag = flag.without_loopback();
        for (family, loopback, others) in [
            (
                IpFamily::V4,
                ["127.0.0.1", "127.255.255.255"],
                ["126.255.255.255", "128.0.0.0"],
            ),
            (IpFamily::V6, ["::1", "::1"], ["::2", "2001:db8::1"]),
        ] {
            let accepted = flag.accepted(family, None);
            let contains = |ip: &str| accepted.contains(ip.parse().expect("an address"));
            assert!(!loopback.iter().any(|ip| contains(ip)), "{accepted:?}");
            assert!(others.iter().all(|ip| contains(ip)), "{accepted:?}");
        }
    }

    /// A list of nothing but the loopback then takes NodePorts nowhere.
    #[test]
    fn nothing_is_left_of_the_loopback_alone() {
        let flag: NodePortAddresses = "localhost".parse().expect("valid");
        let flag = flag.without_loopback();
        for family in IpFamily::ALL {
            assert_eq!(flag.accepted(family, None), Accepted::Within(Vec::new()));
        }
    }

    /// Keywords may stand beside CIDRs (S54).
    #[test]
    fn keywords_and_cidrs_mix() {
        let flag = "primary, localhost ,192.0.2.0/24";
        let node = node(&[(NodeAddressKind::Internal, "10.0.0.1")]);
        let cidrs = ["10.0.0.1/32", "127.0.0.0/8", "192.0.2.0/24"];
        let cidrs = cidrs.map(|cidr| cidr.parse().expect("CIDR")).into();
        assert_eq!(
            accepted(flag, IpFamily::V4, Some(&node)),
            Accepted::Within(cidrs)
        );
    }

    #[rstest]
    #[case("10.0.0.1", "10.0.0.1")]
    #[case("10.0.0.0/8,", "")]
    #[case("Primary", "Primary")]
    fn refuses_other_words(#[case] flag: &str, #[case] word: &str) {
        let error = NodePortAddressError(word.to_owned());
        assert_eq!(flag.parse::<NodePortAddresses>(), Err(error));
    }
}
