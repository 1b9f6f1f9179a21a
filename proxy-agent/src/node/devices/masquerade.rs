//! The address that a device's packets are masqueraded to.

use std::net::IpAddr;

use super::link::{Address, Layer, Link};

/// The address of one family that a device's packets are masqueraded to, where
/// the kernel does not tell (before Linux 6.7): its own, else the Node object's,
/// else any, else its own link-local one.
pub(super) fn masquerade_address(
    is_of_family: fn(&IpAddr) -> bool,
    ifindex: u32,
    links: &[Link],
    addresses: &[Address],
    node: Option<impl Into<IpAddr>>,
) -> Option<IpAddr> {
    let usable = || {
        addresses
            .iter()
            .filter(move |address| address.usable && is_of_family(&address.ip))
    };
    let own = |link_local: bool| {
        usable()
            .filter(move |address| address.ifindex == ifindex && address.link_local == link_local)
            // The first one of those with a subnet: others may be anybody's.
            .min_by_key(|address| address.is_single())
            .map(|address| address.ip)
    };
    let is_loopback = |ifindex: u32| {
        let mut links = links.iter().filter(|link| link.ifindex == ifindex);
        links.all(|link| link.layer == Layer::Loopback)
    };
    let any = || {
        usable()
            .filter(|address| !address.link_local && !is_loopback(address.ifindex))
            .min_by_key(|address| (address.is_single(), **address))
            .map(|address| address.ip)
    };
    own(false)
        .or_else(|| node.map(Into::into))
        .or_else(any)
        .or_else(|| own(true))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::{
        super::fixtures::{address, node},
        *,
    };

    /// Neither a load balancer's address nor one on its way out is taken while
    /// there is another, and a link-local one only then.
    #[test]
    fn masquerades_to_what_others_can_reach() {
        let of = |addresses: &[Address]| {
            let address =
                masquerade_address(IpAddr::is_ipv6, 2, &node(), addresses, None::<Ipv6Addr>);
            address.map(|ip| ip.to_string())
        };
        let usual = address(2, "fd00::2");
        let vip = Address {
            prefix_len: 128,
            ..address(2, "fd00::1")
        };
        let deprecated = Address {
            usable: false,
            ..address(2, "fd00::3")
        };
        let link_local = Address {
            link_local: true,
            ..address(2, "fe80::2")
        };
        let elsewhere = address(3, "fd00::9");
        let all = [deprecated, link_local, vip, usual, elsewhere];
        assert_eq!(of(&all).as_deref(), Some("fd00::2"));
        assert_eq!(of(&[link_local, vip]).as_deref(), Some("fd00::1"));
        assert_eq!(of(&[link_local, elsewhere]).as_deref(), Some("fd00::9"));
        assert_eq!(of(&[deprecated, link_local]).as_deref(), Some("fe80::2"));
        assert_eq!(of(&[deprecated]), None);
    }
}
