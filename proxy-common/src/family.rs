//! IPv4 and IPv6 as types, so that everything else is written once.

use core::fmt;

use crate::net::{AddrV4, AddrV6, Address};

/// An IP family. Code generic over it is compiled once for each, and a feature
/// that exists for one family only does not compile.
pub trait Family: Copy + Ord + fmt::Debug + Send + Sync + 'static {
    /// The family's address as it stands in packets and maps.
    type Addr: Address + From<Self::Ip> + Into<Self::Ip> + Send + Sync;
    /// The family's address as the standard library spells it.
    type Ip: Copy
        + Ord
        + core::hash::Hash
        + fmt::Debug
        + fmt::Display
        + core::str::FromStr
        + Into<core::net::IpAddr>
        + Send
        + Sync;
    /// Kubernetes' name of the family, also its metric label.
    const NAME: &'static str;
    /// Suffix of the family's maps and programs.
    const SUFFIX: &'static str;

    /// The address, if it is one of this family.
    fn from_ip(ip: core::net::IpAddr) -> Option<Self::Ip>;

    /// An address as it stands in packets and maps.
    #[must_use]
    fn addr(ip: Self::Ip) -> Self::Addr {
        Self::Addr::from(ip)
    }

    /// An address as the standard library spells it.
    #[must_use]
    fn ip(addr: Self::Addr) -> Self::Ip {
        addr.into()
    }
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6;

impl Family for V4 {
    type Addr = AddrV4;
    type Ip = core::net::Ipv4Addr;
    const NAME: &'static str = "IPv4";
    const SUFFIX: &'static str = "V4";

    fn from_ip(ip: core::net::IpAddr) -> Option<Self::Ip> {
        match ip {
            core::net::IpAddr::V4(ip) => Some(ip),
            core::net::IpAddr::V6(_) => None,
        }
    }
}

impl Family for V6 {
    type Addr = AddrV6;
    type Ip = core::net::Ipv6Addr;
    const NAME: &'static str = "IPv6";
    const SUFFIX: &'static str = "V6";

    fn from_ip(ip: core::net::IpAddr) -> Option<Self::Ip> {
        match ip {
            core::net::IpAddr::V4(_) => None,
            core::net::IpAddr::V6(ip) => Some(ip),
        }
    }
}
