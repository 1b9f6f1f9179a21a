//! Source addresses and ports of many connections.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

/// Ports that an unprivileged client may use.
const PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// Addresses of one host, and their ports in turn: with enough addresses no pair
/// comes again before its connection has left `TIME_WAIT`. The first one is any, so that
/// two such clients one after the other do not meet either.
#[derive(Clone, Debug)]
pub struct Sources {
    addresses: Vec<IpAddr>,
    given: usize,
}

impl Sources {
    /// Sources at these addresses, of which there must be one.
    pub fn of(addresses: Vec<IpAddr>) -> Self {
        assert!(!addresses.is_empty(), "no address to come from");
        Self {
            given: fastrand::usize(..addresses.len() * PORTS.len()),
            addresses,
        }
    }
}

impl Iterator for Sources {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        let address = self.addresses[self.given % self.addresses.len()];
        let turn = self.given / self.addresses.len();
        let port = PORTS.clone().nth(turn % PORTS.len())?;
        self.given += 1;
        Some(SocketAddr::new(address, port))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{Ipv4Addr, Ipv6Addr},
    };

    use super::*;

    #[test]
    fn no_source_comes_twice_before_all_have() {
        for address in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let other = match address {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::BROADCAST),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let sources = Sources::of(vec![address, other]);
            let all = 2 * PORTS.len();
            let distinct: BTreeSet<_> = sources.clone().take(all).collect();
            assert_eq!(distinct.len(), all);
            assert_eq!(sources.clone().nth(all), sources.clone().next());
        }
    }
}
