//! The prefixes of cluster IPs as the programs are told of them (S47).
//!
//! Pure: from the cluster's prefixes to the few that fit into `CONFIG`.

use std::collections::BTreeSet;

use ipnet::IpNet;
use proxy_common::{
    config::{Config, Prefix},
    family::Family,
};

/// One family's prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<F: Family> {
    pub prefixes: [Prefix<F::Addr>; Config::SERVICE_RANGES],
    /// Those there is no room for, the longest ones. What no Service has of
    /// them is not dropped, but goes where routing sends it.
    pub left_out: Vec<IpNet>,
}

/// The prefixes of one family, put together where they overlap or adjoin.
pub fn ranges<F: Family>(cidrs: &BTreeSet<IpNet>) -> Ranges<F> {
    let of_family = cidrs.iter().copied();
    let of_family: Vec<_> = of_family
        .filter(|cidr| F::from_ip(cidr.addr()).is_some())
        .collect();
    let mut together = IpNet::aggregate(&of_family);
    together.sort_by_key(|cidr| (cidr.prefix_len(), *cidr));
    let left_out = together.split_off(together.len().min(Config::SERVICE_RANGES));
    let mut prefixes = [Prefix::default(); Config::SERVICE_RANGES];
    for (entry, prefix) in prefixes
        .iter_mut()
        .zip(together.iter().filter_map(prefix::<F>))
    {
        *entry = prefix;
    }
    Ranges { prefixes, left_out }
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

    use proxy_common::family::{V4, V6};
    use rstest::rstest;

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        let words = text.split_whitespace();
        words.map(|net| net.parse().expect("a prefix")).collect()
    }

    /// The prefixes that are used, and those left out.
    fn split<F: Family>(cidrs: &str) -> (Vec<IpNet>, Vec<IpNet>) {
        let Ranges { prefixes, left_out } = ranges::<F>(&nets(cidrs).into_iter().collect());
        let used = prefixes
            .iter()
            .filter(|prefix| **prefix != Prefix::default());
        let net = |prefix: &Prefix<F::Addr>| {
            let ip: IpAddr = F::ip(prefix.addr).into();
            let mask: IpAddr = F::ip(prefix.mask).into();
            IpNet::with_netmask(ip, mask).expect("a mask")
        };
        (used.map(net).collect(), left_out)
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
        let (used, left_out) = split::<V4>(cidrs);
        assert_eq!(
            used,
            nets("10.5.0.0/16 10.3.0.0/20 10.1.0.0/24 10.7.0.0/24")
        );
        assert_eq!(left_out, nets("10.9.0.0/24"));
        let (used, left_out) = split::<V6>(cidrs);
        assert_eq!(used, nets("fd05::/108 fd03::/110 fd01::/112 fd07::/112"));
        assert_eq!(left_out, nets("fd09::/112"));
    }
}
