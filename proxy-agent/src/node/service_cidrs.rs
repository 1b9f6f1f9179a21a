//! Tells the programs where cluster IPs come from (S47).

use std::{collections::BTreeSet, mem::offset_of};

use ipnet::IpNet;
use proxy_common::{
    config::{Config, Prefix},
    family::{Family, V4, V6},
    net::{AddrV4, AddrV6},
};
use tracing::warn;

use super::settings::ConfigRow;
use crate::notice::Notice;

/// Keeps the prefixes in `CONFIG`.
#[derive(Debug, Default)]
pub(super) struct ServiceCidrController {
    /// Prefixes that `CONFIG` has no room for.
    without_room: Notice<Vec<IpNet>>,
}

impl ServiceCidrController {
    /// Writes the cluster's prefixes, as far as there is room.
    pub(super) fn apply(&mut self, cidrs: &BTreeSet<IpNet>, row: &mut impl ConfigRow) {
        let Some(config) = row.read() else {
            return;
        };
        let (v4, v6) = (ranges::<V4>(cidrs), ranges::<V6>(cidrs));
        for (index, prefix) in v4.prefixes.into_iter().enumerate() {
            if config.service_ranges_v4[index] != prefix {
                store_v4(row, index, prefix);
            }
        }
        for (index, prefix) in v6.prefixes.iter().enumerate() {
            if config.service_ranges_v6[index] != *prefix {
                store_v6(row, index, prefix);
            }
        }
        let without_room: Vec<IpNet> = v4.without_room.into_iter().chain(v6.without_room).collect();
        let is_complete = without_room.is_empty();
        if self.without_room.is_news(without_room.clone()) && !is_complete {
            warn!(
                "more than {} service ranges of one family: unused cluster IPs of {without_room:?} \
                 are not dropped",
                Config::SERVICE_RANGES
            );
        }
    }
}

/// Overwrites a prefix by one store.
fn store_v4(row: &mut impl ConfigRow, index: usize, prefix: Prefix<AddrV4>) {
    let at = offset_of!(Config, service_ranges_v4) + index * size_of::<Prefix<AddrV4>>();
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&prefix.addr.octets);
    bytes[4..].copy_from_slice(&prefix.mask.octets);
    row.store(at, u64::from_ne_bytes(bytes));
}

/// Overwrites a prefix that programs may be reading. Between the stores it contains no
/// address.
fn store_v6(row: &mut impl ConfigRow, index: usize, prefix: &Prefix<AddrV6>) {
    let at = offset_of!(Config, service_ranges_v6) + index * size_of::<Prefix<AddrV6>>();
    let halves = |addr: AddrV6| {
        let [high, low] = [0, 8].map(|start| {
            let mut half = [0; 8];
            half.copy_from_slice(&addr.octets[start..start + 8]);
            u64::from_ne_bytes(half)
        });
        (high, low)
    };
    let (addr_high, addr_low) = halves(prefix.addr);
    let (mask_high, mask_low) = halves(prefix.mask);
    let addr = at + offset_of!(Prefix<AddrV6>, addr);
    let mask = at + offset_of!(Prefix<AddrV6>, mask);
    let stores = [
        (addr, u64::MAX),
        (mask + 8, mask_low),
        (mask, mask_high),
        (addr + 8, addr_low),
        (addr, addr_high),
    ];
    for (offset, value) in stores {
        row.store(offset, value);
    }
}

/// One family's prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<F: Family> {
    pub prefixes: [Prefix<F::Addr>; Config::SERVICE_RANGES],
    /// The longest prefixes, which there is no room for. Packets to their unused addresses
    /// are not dropped, but go where routing sends them.
    pub without_room: Vec<IpNet>,
}

/// The prefixes of one family, put together where they overlap or adjoin.
pub fn ranges<F: Family>(cidrs: &BTreeSet<IpNet>) -> Ranges<F> {
    let of_family = cidrs.iter().copied();
    let of_family: Vec<_> = of_family
        .filter(|cidr| F::from_ip(cidr.addr()).is_some())
        .collect();
    let mut together = IpNet::aggregate(&of_family);
    together.sort_by_key(|cidr| (cidr.prefix_len(), *cidr));
    let without_room = together.split_off(together.len().min(Config::SERVICE_RANGES));
    let mut prefixes = [Prefix::default(); Config::SERVICE_RANGES];
    for (entry, prefix) in prefixes
        .iter_mut()
        .zip(together.iter().filter_map(prefix::<F>))
    {
        *entry = prefix;
    }
    Ranges {
        prefixes,
        without_room,
    }
}

fn prefix<F: Family>(net: &IpNet) -> Option<Prefix<F::Addr>> {
    Some(Prefix {
        addr: F::addr(F::from_ip(net.network())?),
        mask: F::addr(F::from_ip(net.netmask())?),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rstest::rstest;

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        let words = text.split_whitespace();
        words.map(|net| net.parse().expect("a prefix")).collect()
    }

    /// The prefixes that are used, and those left out.
    fn split<F: Family>(cidrs: &str) -> (Vec<IpNet>, Vec<IpNet>) {
        let Ranges {
            prefixes,
            without_room,
        } = ranges::<F>(&nets(cidrs).into_iter().collect());
        let used = prefixes
            .iter()
            .filter(|prefix| **prefix != Prefix::default());
        let net = |prefix: &Prefix<F::Addr>| {
            let ip: IpAddr = F::ip(prefix.addr).into();
            let mask: IpAddr = F::ip(prefix.mask).into();
            IpNet::with_netmask(ip, mask).expect("a mask")
        };
        (used.map(net).collect(), without_room)
    }

    #[rstest]
    #[case::none("", "", "")]
    #[case::one_of_each("10.96.0.0/16 fd00:10:96::/112", "10.96.0.0/16", "fd00:10:96::/112")]
    #[case::within(
        "10.96.0.0/12 10.96.0.0/16 fd00::/108 fd00::/112",
        "10.96.0.0/12",
        "fd00::/108"
    )]
    #[case::adjoining(
        "10.96.0.0/17 10.96.128.0/17 fd00::/113 fd00::8000/113",
        "10.96.0.0/16",
        "fd00::/112"
    )]
    fn families_have_their_own(#[case] cidrs: &str, #[case] v4: &str, #[case] v6: &str) {
        assert_eq!(split::<V4>(cidrs), (nets(v4), Vec::new()));
        assert_eq!(split::<V6>(cidrs), (nets(v6), Vec::new()));
    }

    #[test]
    fn the_longest_are_left_out() {
        let cidrs = "10.1.0.0/24 10.3.0.0/20 10.5.0.0/16 10.7.0.0/24 10.9.0.0/24 \
                     fd01::/112 fd03::/110 fd05::/108 fd07::/112 fd09::/112";
        let (used, without_room) = split::<V4>(cidrs);
        assert_eq!(
            used,
            nets("10.5.0.0/16 10.3.0.0/20 10.1.0.0/24 10.7.0.0/24")
        );
        assert_eq!(without_room, nets("10.9.0.0/24"));
        let (used, without_room) = split::<V6>(cidrs);
        assert_eq!(used, nets("fd05::/108 fd03::/110 fd01::/112 fd07::/112"));
        assert_eq!(without_room, nets("fd09::/112"));
    }

    /// `CONFIG`, and what programs could see of it between two stores.
    struct Row {
        config: Config,
        seen: Vec<Config>,
    }

    impl ConfigRow for Row {
        fn read(&self) -> Option<Config> {
            Some(self.config)
        }

        fn write(&mut self, config: Config) {
            self.config = config;
        }

        fn store(&mut self, offset: usize, value: u64) {
            let bytes = value.to_ne_bytes();
            let v6 = offset_of!(Config, service_ranges_v6);
            if offset < v6 {
                let at = offset - offset_of!(Config, service_ranges_v4);
                let prefix = &mut self.config.service_ranges_v4[at / 8];
                prefix.addr.octets.copy_from_slice(&bytes[..4]);
                prefix.mask.octets.copy_from_slice(&bytes[4..]);
            } else {
                let at = offset - v6;
                let prefix = &mut self.config.service_ranges_v6[at / 32];
                let octets = if at % 32 < 16 {
                    &mut prefix.addr.octets
                } else {
                    &mut prefix.mask.octets
                };
                octets[at % 16..at % 16 + 8].copy_from_slice(&bytes);
            }
            self.seen.push(self.config);
        }
    }

    fn contains(prefix: &Prefix<AddrV6>, ip: &str) -> bool {
        let [addr, mask] = [prefix.addr, prefix.mask].map(|addr| u128::from(V6::ip(addr)));
        let ip: std::net::Ipv6Addr = ip.parse().expect("an address");
        u128::from(ip) & mask == addr
    }

    /// Programs read while a prefix is exchanged.
    #[test]
    fn a_prefix_that_is_exchanged_takes_in_nobody_else() {
        let config = Config::default();
        let seen = Vec::new();
        let mut row = Row { config, seen };
        let mut controller = ServiceCidrController::default();
        for cidrs in [
            "10.96.0.0/16 fd00:10:96::/112",
            "10.8.0.0/13 fd00:10::/32",
            "",
        ] {
            let cidrs: BTreeSet<_> = nets(cidrs).into_iter().collect();
            controller.apply(&cidrs, &mut row);
            let (v4, v6) = (ranges::<V4>(&cidrs), ranges::<V6>(&cidrs));
            assert_eq!(row.config.service_ranges_v4, v4.prefixes);
            assert_eq!(row.config.service_ranges_v6, v6.prefixes);
            for state in row.seen.drain(..) {
                for prefix in state.service_ranges_v6 {
                    let others = ["::1", "2001:db8::1", "fe80::1"];
                    let taken = others.map(|ip| contains(&prefix, ip));
                    assert_eq!(taken, [false; 3], "{prefix:?}");
                }
            }
        }
        controller.apply(&BTreeSet::new(), &mut row);
        assert!(row.seen.is_empty(), "nothing changed");
    }
}
