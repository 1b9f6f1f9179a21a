//! The two address families. Every test runs for both.

use std::{fmt, net::IpAddr};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in the order Kubernetes prints them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// The family's name in the Kubernetes API: `IPv4` or `IPv6`.
    pub fn api_name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.api_name())
    }
}

/// The families a lab has addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Families {
    /// Both on every host.
    #[default]
    Dual,
    /// IPv6 is switched off in every namespace.
    V4Only,
    /// No IPv4 address anywhere, not even 127.0.0.1.
    V6Only,
}

impl Families {
    /// The families present, IPv4 first.
    pub fn list(self) -> &'static [Family] {
        match self {
            Self::Dual => &Family::BOTH,
            Self::V4Only => &[Family::V4],
            Self::V6Only => &[Family::V6],
        }
    }

    /// Returns whether `family` is one of them.
    pub fn has(self, family: Family) -> bool {
        self.list().contains(&family)
    }
}
