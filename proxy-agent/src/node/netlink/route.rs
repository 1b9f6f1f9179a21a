//! Decoding of netlink's messages about routes of the main and the local table.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

/// The routing table that says which addresses are the host's own
/// (`RT_TABLE_LOCAL`).
pub(super) const LOCAL_TABLE: u8 = 255;

/// The devices by which a route leads, each with the destination if that is on
/// its link; without it, if the route leads to another router or anywhere.
pub(super) fn main_route(route: &RouteMessage) -> Vec<(u32, Option<IpNet>)> {
    if route.header.table != RouteHeader::RT_TABLE_MAIN || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let destination = destination(route).filter(|destination| destination.prefix_len() != 0);
    let on_link = |attributes: &[RouteAttribute]| {
        let is_gateway = |attribute: &RouteAttribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
            )
        };
        destination.filter(|_| !attributes.iter().any(is_gateway))
    };
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => devices.push((*ifindex, on_link(&route.attributes))),
            RouteAttribute::MultiPath(hops) => {
                let hops = hops.iter();
                devices.extend(hops.map(|hop| (hop.interface_index, on_link(&hop.attributes))));
            }
            _ => {}
        }
    }
    devices
}

pub(super) fn local_prefix(route: &RouteMessage) -> Option<IpNet> {
    if route.header.table != LOCAL_TABLE || route.header.kind != RouteType::Local {
        return None;
    }
    destination(route)
}

/// Returns the destination of a route. Without an address, it is all addresses.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let any = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let ip = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
    let length = route.header.destination_prefix_length;
    Some(IpNet::new(ip.unwrap_or(any), length).ok()?.trunc())
}

#[cfg(test)]
pub(super) mod tests {
    use netlink_packet_route::route::RouteNextHop;
    use rstest::rstest;

    use super::*;

    pub(in crate::node::netlink) fn route(
        table: u8,
        kind: RouteType,
        length: u8,
        attributes: Vec<RouteAttribute>,
    ) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = table;
        route.header.kind = kind;
        route.header.destination_prefix_length = length;
        route.attributes = attributes;
        route
    }

    fn hop(ifindex: u32, attributes: Vec<RouteAttribute>) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = ifindex;
        hop.attributes = attributes;
        hop
    }

    pub(in crate::node::netlink) fn gateway() -> RouteAttribute {
        RouteAttribute::Gateway(IpAddr::from([192, 0, 2, 1]).into())
    }

    #[rstest]
    #[case::by_a_gateway(254, 24, vec![RouteAttribute::Oif(2), gateway()], "2 away")]
    #[case::default_without_gateway(254, 0, vec![RouteAttribute::Oif(2)], "2 away")]
    #[case::to_a_neighbour(254, 24, vec![RouteAttribute::Oif(2)], "2 10.9.0.0/24")]
    #[case::to_one_address(254, 32, vec![RouteAttribute::Oif(2)], "2 10.9.0.0/32")]
    #[case::of_another_table(100, 24, vec![RouteAttribute::Oif(2), gateway()], "")]
    #[case::by_several(
        254,
        24,
        vec![RouteAttribute::MultiPath(vec![hop(3, vec![gateway()]), hop(4, vec![])])],
        "3 away, 4 10.9.0.0/24",
    )]
    #[case::default_by_several(
        254,
        0,
        vec![RouteAttribute::MultiPath(vec![hop(3, vec![]), hop(4, vec![])])],
        "3 away, 4 away",
    )]
    fn routes_lead_away_or_to_neighbours(
        #[case] table: u8,
        #[case] length: u8,
        #[case] mut attributes: Vec<RouteAttribute>,
        #[case] expected: &str,
    ) {
        attributes.push(RouteAttribute::Destination(
            IpAddr::from([10, 9, 0, 0]).into(),
        ));
        let texts = |kind| {
            let routes = main_route(&route(table, kind, length, attributes.clone())).into_iter();
            let texts = routes.map(|(ifindex, destination)| match destination {
                Some(destination) => format!("{ifindex} {destination}"),
                None => format!("{ifindex} away"),
            });
            texts.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(texts(RouteType::Unicast), expected);
        assert_eq!(texts(RouteType::BlackHole), "");
    }

    #[test]
    fn local_routes_are_prefixes() {
        let destination = |ip: IpAddr| vec![RouteAttribute::Destination(ip.into())];
        let ip = IpAddr::from([10, 9, 0, 0]);
        let local = |table, kind| local_prefix(&route(table, kind, 24, destination(ip)));
        let prefix = "10.9.0.0/24".parse().expect("a prefix");
        assert_eq!(local(255, RouteType::Local), Some(prefix));
        assert_eq!(local(255, RouteType::Broadcast), None);
        assert_eq!(local(254, RouteType::Local), None);
        let all = route(255, RouteType::Local, 0, Vec::new());
        assert_eq!(local_prefix(&all), "0.0.0.0/0".parse().ok());
    }
}
