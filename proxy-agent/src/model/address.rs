//! IP addresses and CIDRs as Kubernetes objects spell them.
//!
//! Objects older than the API server's strict validation hold spellings the
//! standard library refuses, such as `172.30.0.041` (S13). kube-proxy reads
//! them as decimal, so this does too; every address leaves here canonical.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use proxy_common::{family::Family, net::Address as _};
use serde::{Deserialize, Serialize};

/// An IP family as a value, for the places where it is data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family as a value.
    pub fn by_type<F: Family>() -> Self {
        Self::of(F::ip(F::Addr::ZERO).into())
    }

    /// Kubernetes' name of the family.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error in an address. Displayed after the name of the field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum AddressProblem {
    #[error("{0:?} is not an IP address")]
    Syntax(String),
    #[error("{ip} is not an {expected} address")]
    Family { ip: IpAddr, expected: IpFamily },
    #[error("{ip} is {class}, which cannot be proxied")]
    Special { ip: IpAddr, class: AddressClass },
}

impl AddressProblem {
    /// Short name of the problem, the label of its counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "address_syntax",
            Self::Family { .. } => "address_family",
            Self::Special { .. } => "address_special",
        }
    }
}

/// Classes of addresses that mean something else on every host, or no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressClass {
    Unspecified,
    Loopback,
    LinkLocal,
    Multicast,
    Broadcast,
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "the unspecified address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
        })
    }
}

/// The special class an address belongs to, if any.
pub fn classify(ip: IpAddr) -> Option<AddressClass> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some(AddressClass::Unspecified)
    } else if ip.is_loopback() {
        Some(AddressClass::Loopback)
    } else if link_local {
        Some(AddressClass::LinkLocal)
    } else if ip.is_multicast() {
        Some(AddressClass::Multicast)
    } else if ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some(AddressClass::Broadcast)
    } else {
        None
    }
}

/// At most one address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyIps {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl FamilyIps {
    /// The address of one family.
    pub fn get<F: Family>(self) -> Option<F::Ip> {
        let v4 = self.v4.map(IpAddr::V4);
        let v6 = self.v6.map(IpAddr::V6);
        v4.into_iter().chain(v6).find_map(F::from_ip)
    }
}

impl FromIterator<IpAddr> for FamilyIps {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(ips: I) -> Self {
        ips.into_iter().fold(Self::default(), |ips, ip| match ip {
            IpAddr::V4(ip) => Self {
                v4: Some(ip),
                ..ips
            },
            IpAddr::V6(ip) => Self {
                v6: Some(ip),
                ..ips
            },
        })
    }
}

/// The addresses of one family that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr<F: Family> {
    /// With no bit set behind the prefix.
    network: F::Ip,
    length: u8,
}

impl<F: Family> Cidr<F> {
    /// The network, if it is of this family.
    pub fn of(net: IpNet) -> Option<Self> {
        let network = F::from_ip(net.network())?;
        Some(Self {
            network,
            length: net.prefix_len(),
        })
    }

    /// Its first address.
    pub fn network(self) -> F::Ip {
        self.network
    }

    /// Returns how many bits its addresses have in common.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Returns whether the address is one of them.
    pub fn contains(self, ip: F::Ip) -> bool {
        IpNet::new(ip.into(), self.length).is_ok_and(|net| net.network() == self.network.into())
    }
}

/// Reads an address of the given family; `None` takes either.
pub fn parse_address(raw: &str, expected: Option<IpFamily>) -> Result<IpAddr, AddressProblem> {
    let ip = parse_ip(raw).ok_or_else(|| AddressProblem::Syntax(raw.to_owned()))?;
    match expected {
        Some(expected) if IpFamily::of(ip) != expected => {
            Err(AddressProblem::Family { ip, expected })
        }
        _ => Ok(ip),
    }
}

/// Reads an IP address, tolerating leading zeros, which do not mean octal.
///
/// An IPv4-mapped IPv6 address is the IPv4 address it stands for: no packet
/// carries it. Zones (`fe80::1%eth0`) are refused, they name a device.
pub fn parse_ip(raw: &str) -> Option<IpAddr> {
    if raw.contains(':') {
        parse_v6(raw).map(|ip| IpAddr::V6(ip).to_canonical())
    } else {
        parse_v4(raw).map(IpAddr::V4)
    }
}

/// Reads a CIDR, tolerating leading zeros in address and length, and clears
/// the bits behind the prefix.
pub fn parse_cidr(raw: &str) -> Option<IpNet> {
    let (ip, length) = raw.split_once('/')?;
    let length = decimal(length, 128)?;
    let net = IpNet::new(parse_ip(ip)?, u8::try_from(length).ok()?).ok()?;
    Some(net.trunc())
}

/// The network as an address of one family and a prefix length, if it is of
/// that family.
pub fn prefix_of<F: Family>(net: IpNet) -> Option<(F::Ip, u8)> {
    F::from_ip(net.network()).map(|ip| (ip, net.prefix_len()))
}

fn parse_v4(raw: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = raw.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?, 255)?).ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn parse_v6(raw: &str) -> Option<Ipv6Addr> {
    // Only the last group of the whole address may be a dotted one.
    let (head, tail) = match raw.split_once("::") {
        Some((head, _)) if head.contains('.') => return None,
        Some((head, tail)) => (groups(head)?, Some(groups(tail)?)),
        None => (groups(raw)?, None),
    };
    let mut segments = [0; 8];
    match tail {
        None if head.len() == 8 => segments.copy_from_slice(&head),
        // "::" stands for one group of zeros at least.
        Some(tail) if head.len() + tail.len() < 8 => {
            segments[..head.len()].copy_from_slice(&head);
            segments[8 - tail.len()..].copy_from_slice(&tail);
        }
        _ => return None,
    }
    Some(segments.into())
}

/// The 16-bit groups of one side of an IPv6 address; a dotted IPv4 address
/// may stand for the last two.
fn groups(raw: &str) -> Option<Vec<u16>> {
    if raw.is_empty() {
        return Some(Vec::new());
    }
    let mut groups = Vec::with_capacity(8);
    let mut parts = raw.split(':').peekable();
    while let Some(part) = parts.next() {
        if part.contains('.') && parts.peek().is_none() {
            let [a, b, c, d] = parse_v4(part)?.octets();
            groups.extend([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        } else {
            groups.push(number(part, 16, 0xffff).and_then(|n| u16::try_from(n).ok())?);
        }
    }
    Some(groups)
}

fn decimal(raw: &str, max: u32) -> Option<u32> {
    number(raw, 10, max)
}

/// A number of digits only: no sign, no blanks, any count of leading zeros.
fn number(raw: &str, radix: u32, max: u32) -> Option<u32> {
    if raw.is_empty() {
        return None;
    }
    raw.chars().try_fold(0, |number: u32, digit| {
        let number = number * radix + digit.to_digit(radix)?;
        (number <= max).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// Addresses are parsed leniently: zeros may come first (S13).
    #[rstest]
    #[case::plain("10.0.0.1", "10.0.0.1")]
    #[case::leading_zeros_are_decimal("172.30.0.041", "172.30.0.41")]
    #[case::many_zeros("010.000.0000.1", "10.0.0.1")]
    #[case::compressed("fd00::1", "fd00::1")]
    #[case::upper_case("FD00:0:0:0:0:0:0:A", "fd00::a")]
    #[case::all_compressed("::", "::")]
    #[case::head_only("fd00::", "fd00::")]
    #[case::long_groups("fd00::00001", "fd00::1")]
    #[case::ipv4_tail("64:ff9b::192.0.2.033", "64:ff9b::c000:221")]
    #[case::mapped_is_ipv4("::ffff:10.0.0.041", "10.0.0.41")]
    #[case::mapped_in_hex_is_ipv4("::ffff:a00:1", "10.0.0.1")]
    fn reads_lenient_spellings(#[case] raw: &str, #[case] canonical: &str) {
        assert_eq!(parse_ip(raw), Some(canonical.parse().expect("canonical")));
    }

    #[rstest]
    #[case("")]
    #[case(" 10.0.0.1")]
    #[case("10.0.0.1 ")]
    #[case("10.0.0")]
    #[case("10.0.0.0.1")]
    #[case("10.0.0.256")]
    #[case("10.0.0.-1")]
    #[case("10.0.0.+1")]
    #[case("10.0..1")]
    #[case("0x0a.0.0.1")]
    #[case("99999999999999999999.0.0.1")]
    #[case(":")]
    #[case(":::")]
    #[case("fd00:::1")]
    #[case("fd00::1::2")]
    #[case("fd00:1:2:3:4:5:6")]
    #[case("fd00:1:2:3:4:5:6:7:8")]
    #[case("fd00:1:2:3::4:5:6:7")]
    #[case("fd00::10000")]
    #[case("fe80::1%eth0")]
    #[case("10.0.0.1::")]
    #[case("fd00::1.2.3")]
    #[case("example.com")]
    fn refuses_what_is_no_address(#[case] raw: &str) {
        assert_eq!(parse_ip(raw), None);
    }

    #[rstest]
    #[case("10.0.0.0/8", Some("10.0.0.0/8"))]
    #[case::host_bits_are_cleared("10.1.2.3/16", Some("10.1.0.0/16"))]
    #[case::leading_zeros("172.30.0.0/025", Some("172.30.0.0/25"))]
    #[case("fd00:1::/48", Some("fd00:1::/48"))]
    #[case("0.0.0.0/0", Some("0.0.0.0/0"))]
    #[case::too_long("10.0.0.0/33", None)]
    #[case::no_length("10.0.0.0", None)]
    #[case::empty_length("10.0.0.0/", None)]
    #[case("fd00::/129", None)]
    fn reads_cidrs(#[case] raw: &str, #[case] canonical: Option<&str>) {
        let canonical = canonical.map(|net| net.parse().expect("canonical"));
        assert_eq!(parse_cidr(raw), canonical);
    }

    #[rstest]
    #[case("0.0.0.0", Some(AddressClass::Unspecified))]
    #[case("::", Some(AddressClass::Unspecified))]
    #[case("127.3.2.1", Some(AddressClass::Loopback))]
    #[case("::1", Some(AddressClass::Loopback))]
    #[case("169.254.169.254", Some(AddressClass::LinkLocal))]
    #[case("fe80::1", Some(AddressClass::LinkLocal))]
    #[case("224.0.0.1", Some(AddressClass::Multicast))]
    #[case("ff05::2", Some(AddressClass::Multicast))]
    #[case("255.255.255.255", Some(AddressClass::Broadcast))]
    #[case("10.0.0.1", None)]
    #[case("fd00::1", None)]
    #[case("2001:db8::1", None)]
    fn knows_special_addresses(#[case] ip: IpAddr, #[case] class: Option<AddressClass>) {
        assert_eq!(classify(ip), class);
    }

    proptest! {
        /// Addresses are read as the standard library prints them; an IPv4-mapped address as
        /// the IPv4 address.
        #[test]
        fn reads_every_canonical_address(ip: IpAddr) {
            prop_assert_eq!(parse_ip(&ip.to_string()), Some(ip.to_canonical()));
        }

        /// Lenient means a superset of the standard syntax, never another
        /// value.
        #[test]
        fn agrees_with_the_standard_syntax(raw in "[0-9a-f:.]{0,24}") {
            if let Ok(ip) = raw.parse::<IpAddr>() {
                prop_assert_eq!(parse_ip(&raw), Some(ip.to_canonical()));
            }
        }
    }
}
