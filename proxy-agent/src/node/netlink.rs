//! Reads links, addresses and local routes, and tells when they change.

use std::{io, net::IpAddr, num::NonZeroI32};

use futures::{Stream, StreamExt as _, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage, VlanProtocol,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use proxy_common::vlan::Vlan;
use rtnetlink::{
    Handle, MulticastGroup, new_connection_with_strict_check, new_multicast_connection,
    packet_core::{ErrorMessage, NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};

use crate::{
    model::IpFamily,
    node::devices::desired::{Address, Layer, Link, LinkKind, Routes},
};

/// Netlink cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    #[error("list the network devices")]
    Links(#[source] rtnetlink::Error),
    #[error("list the addresses")]
    Addresses(#[source] rtnetlink::Error),
    #[error("list the routes")]
    Routes(#[source] rtnetlink::Error),
}

/// The routing table that says which addresses are the host's own
/// (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u8 = 255;

/// What happened. What exactly changed is found by listing: messages may be
/// lost under load, the lists are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Routes of the main table changed, and nothing else.
    Routes,
    /// Devices, addresses or local routes may have changed.
    Devices,
    /// There will be no news any more.
    Lost,
}

/// Hears of changes, and lists devices, addresses and routes.
pub struct Netlink {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Netlink {
    /// Subscribes to changes, before anything is listed, so that none is missed
    /// in between.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, _, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { messages })
    }

    /// Waits for a change that concerns us.
    pub async fn changed(&mut self) -> News {
        loop {
            let Some((message, _)) = self.messages.next().await else {
                return News::Lost;
            };
            let mut news = news_of(&message);
            while let Ok((message, _)) = self.messages.try_recv() {
                news = news.max(news_of(&message));
            }
            if let Some(news) = news {
                return news;
            }
        }
    }

    /// All devices of this network namespace.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let lister = lister()?;
        let links = lister.link().get().execute();
        let links = whole_list(links, |message| [link(message)]).await;
        links.map_err(NetlinkError::Links)
    }

    /// All addresses of this network namespace.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let lister = lister()?;
        let addresses = lister.address().get().execute();
        let addresses = whole_list(addresses, address).await;
        addresses.map_err(NetlinkError::Addresses)
    }

    /// The prefixes that the host takes for its own, of both families: the
    /// routes of type local of the local table (E25).
    pub async fn local_prefixes(&self) -> Result<Vec<IpNet>, NetlinkError> {
        let mut prefixes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.table = LOCAL_TABLE;
            request.header.kind = RouteType::Local;
            prefixes.extend(self.routes(request, local_prefix).await?);
        }
        Ok(prefixes)
    }

    /// Where routes of the main table lead, in both families.
    pub async fn main_routes(&self) -> Result<Routes, NetlinkError> {
        let mut all = Routes::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            request.header.kind = RouteType::Unicast;
            for (ifindex, destination) in self.routes(request, main_route).await? {
                match destination {
                    None => {
                        all.gateways.insert(ifindex);
                    }
                    Some(destination) => {
                        all.on_link.entry(ifindex).or_default().insert(destination);
                    }
                }
            }
        }
        Ok(all)
    }

    /// Whether the main table leads anywhere at all in a family.
    pub async fn has_default_route(&self, family: IpFamily) -> Result<bool, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = match family {
            IpFamily::V4 => AddressFamily::Inet,
            IpFamily::V6 => AddressFamily::Inet6,
        };
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        request.header.kind = RouteType::Unicast;
        let default = |route: &RouteMessage| {
            (route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.destination_prefix_length == 0)
                .then_some(())
        };
        Ok(!self.routes(request, default).await?.is_empty())
    }

    /// What `take` makes of the routes that fit the request.
    async fn routes<I: IntoIterator>(
        &self,
        request: RouteMessage,
        take: impl Fn(&RouteMessage) -> I,
    ) -> Result<Vec<I::Item>, NetlinkError> {
        let family = request.header.address_family;
        let lister = lister()?;
        let routes = lister.route().get(request).execute();
        let of_family =
            |route: &RouteMessage| (route.header.address_family == family).then(|| take(route));
        match whole_list(routes, of_family).await {
            Ok(taken) => Ok(taken.into_iter().flatten().collect()),
            // A table without routes is not there; nor is that of a family
            // which this kernel does not have.
            Err(rtnetlink::Error::NetlinkError(error))
                if [libc::ENOENT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT]
                    .contains(&error.raw_code().abs()) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(NetlinkError::Routes(error)),
        }
    }
}

/// A connection for one list, which lasts as long as this is kept. It lists
/// only what is asked for, as a router's tables may be long, and hears nothing
/// else: news of what others asked for carry the numbers of their requests, and
/// would be taken for answers to ours.
fn lister() -> Result<Handle, NetlinkError> {
    let (mut connection, handle, _) =
        new_connection_with_strict_check().map_err(NetlinkError::Open)?;
    // Without it, the end of a list looks like that of the connection.
    connection.set_forward_done(true);
    tokio::spawn(connection);
    Ok(handle)
}

/// What `take` makes of a list. One that breaks off is an error, never a
/// shorter list: what is missing in it would be taken for gone (S55).
async fn whole_list<M, I: IntoIterator>(
    list: impl Stream<Item = Result<M, rtnetlink::Error>>,
    take: impl Fn(&M) -> I,
) -> Result<Vec<I::Item>, rtnetlink::Error> {
    let mut list = std::pin::pin!(list);
    let mut taken = Vec::new();
    loop {
        match list.next().await {
            Some(Ok(message)) => taken.extend(take(&message)),
            Some(Err(rtnetlink::Error::UnexpectedMessage(NetlinkMessage {
                payload: NetlinkPayload::Done(done),
                ..
            }))) => {
                let Some(code) = NonZeroI32::new(done.code) else {
                    return Ok(taken);
                };
                let mut error = ErrorMessage::default();
                error.code = Some(code);
                return Err(rtnetlink::Error::NetlinkError(error));
            }
            Some(Err(error)) => return Err(error),
            None => return Err(rtnetlink::Error::RequestFailed),
        }
    }
}

/// What a message says that concerns us.
fn news_of(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<News> {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => match route.header.table {
            LOCAL_TABLE => Some(News::Devices),
            RouteHeader::RT_TABLE_MAIN => (!main_route(route).is_empty()).then_some(News::Routes),
            _ => None,
        },
        // Also that messages were lost.
        _ => Some(News::Devices),
    }
}

/// The devices by which a route leads, each with the destination if that is on
/// its link; without it, if the route leads to another router or anywhere.
fn main_route(route: &RouteMessage) -> Vec<(u32, Option<IpNet>)> {
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

fn local_prefix(route: &RouteMessage) -> Option<IpNet> {
    if route.header.table != LOCAL_TABLE || route.header.kind != RouteType::Local {
        return None;
    }
    destination(route)
}

/// Where a route leads. Without an address, it is for all of them.
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

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        layer: layer(message.header.link_layer_type),
        master: None,
        kind: LinkKind::Hardware,
        mac: [0; 6],
        vlan: None,
        is_up: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::Running),
    };
    let mut lower = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(ifindex) => lower = Some(*ifindex),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Address(mac) => link.mac = mac[..].try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                link.vlan = vlan(infos);
                let mut infos = infos.iter();
                link.kind = infos
                    .find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(link_kind(kind, link.layer)),
                        _ => None,
                    })
                    .unwrap_or(LinkKind::Hardware);
            }
            _ => {}
        }
    }
    // The one below may be in another network namespace, where its number means
    // another device; then no packet with the tag comes in here.
    link.vlan = link.vlan.and_then(|vlan| {
        let uplink = lower?;
        Some(Vlan { uplink, ..vlan })
    });
    link
}

/// The VLAN that a device is for; its uplink is not known yet.
fn vlan(infos: &[LinkInfo]) -> Option<Vlan> {
    let mut data = infos.iter().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    });
    let (mut id, mut protocol) = (None, VlanProtocol::Ieee8021Q);
    for info in data.next()? {
        match info {
            InfoVlan::Id(number) => id = Some(*number),
            InfoVlan::Protocol(kind) => protocol = *kind,
            _ => {}
        }
    }
    Some(Vlan {
        uplink: 0,
        protocol: u16::from(protocol).to_be(),
        id: id?,
    })
}

fn link_kind(kind: &InfoKind, layer: Layer) -> LinkKind {
    match kind {
        InfoKind::Bridge => LinkKind::Bridge,
        InfoKind::Bond | InfoKind::Team => LinkKind::Bond,
        InfoKind::Ifb => LinkKind::Detour,
        // With Ethernet header it is a tap, for a virtual machine.
        InfoKind::Tun if layer == Layer::Ethernet => LinkKind::Other,
        InfoKind::Tun
        | InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::BareUdp
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTap
        | InfoKind::GreTun6
        | InfoKind::GreTap6
        | InfoKind::ErSpan
        | InfoKind::Ip6ErSpan
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Xfrm
        | InfoKind::Wireguard => LinkKind::Tunnel,
        _ => LinkKind::Other,
    }
}

fn layer(kind: LinkLayerType) -> Layer {
    match kind {
        LinkLayerType::Ether => Layer::Ethernet,
        LinkLayerType::Loopback => Layer::Loopback,
        LinkLayerType::None
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Rawip => Layer::Ip,
        _ => Layer::Other,
    }
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            // The device's own end; `Address` is the other one on
            // point-to-point devices.
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let transient = AddressFlags::Tentative
        | AddressFlags::Dadfailed
        | AddressFlags::Deprecated
        | AddressFlags::Secondary;
    let ip = ip?;
    let link_local = match message.header.scope {
        AddressScope::Universe => false,
        AddressScope::Link if ip.is_ipv6() => true,
        _ => return None,
    };
    Some(Address {
        ifindex: message.header.index,
        ip,
        prefix_len: message.header.prefix_len,
        usable: !flags.intersects(transient),
        link_local,
    })
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use netlink_packet_route::route::RouteNextHop;
    use rstest::rstest;
    use rtnetlink::packet_core::{DoneMessage, NetlinkHeader};

    use super::*;

    fn route(
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

    fn gateway() -> RouteAttribute {
        RouteAttribute::Gateway(IpAddr::from([192, 0, 2, 1]).into())
    }

    fn error(code: i32) -> rtnetlink::Error {
        let mut error = ErrorMessage::default();
        error.code = NonZeroI32::new(-code);
        rtnetlink::Error::NetlinkError(error)
    }

    /// The end of a list, or the error that ends it.
    fn end(code: i32) -> rtnetlink::Error {
        let mut done = DoneMessage::default();
        done.code = -code;
        let done = NetlinkPayload::Done(done);
        rtnetlink::Error::UnexpectedMessage(NetlinkMessage::new(NetlinkHeader::default(), done))
    }

    /// S55
    #[rstest]
    #[case::whole(Some(end(0)), Some(2))]
    #[case::without_an_end(None, None)]
    #[case::ended_by_an_error(Some(end(libc::ENOMEM)), None)]
    #[case::without_memory(Some(error(libc::ENOMEM)), None)]
    #[case::interrupted(Some(error(libc::EINTR)), None)]
    #[case::without_answer(Some(rtnetlink::Error::RequestFailed), None)]
    #[tokio::test]
    async fn a_list_that_breaks_off_is_an_error(
        #[case] end: Option<rtnetlink::Error>,
        #[case] prefixes: Option<usize>,
    ) {
        let local = || route(LOCAL_TABLE, RouteType::Local, 32, Vec::new());
        let routes = [Ok(local()), Ok(local())];
        let routes = stream::iter(routes.into_iter().chain(end.map(Err)));
        let listed = whole_list(routes, local_prefix).await;
        assert_eq!(listed.ok().map(|list| list.len()), prefixes);
    }

    /// The real thing: every list has its end.
    #[tokio::test]
    async fn lists_are_read_to_their_end() {
        let netlink = Netlink::open().expect("netlink");
        let links = netlink.links().await.expect("devices");
        assert!(links.iter().any(|link| link.layer == Layer::Loopback));
        netlink.addresses().await.expect("addresses");
        netlink.local_prefixes().await.expect("local routes");
        netlink.main_routes().await.expect("routes");
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

    /// A router's routes come and go all the time; some concern nobody here.
    #[rstest]
    #[case(255, vec![], Some(News::Devices))]
    #[case(254, vec![RouteAttribute::Oif(2), gateway()], Some(News::Routes))]
    #[case(254, vec![RouteAttribute::Oif(2)], Some(News::Routes))]
    #[case(254, vec![], None)]
    #[case(100, vec![RouteAttribute::Oif(2), gateway()], None)]
    fn news_are_told_by_their_table(
        #[case] table: u8,
        #[case] attributes: Vec<RouteAttribute>,
        #[case] expected: Option<News>,
    ) {
        let route = route(table, RouteType::Unicast, 24, attributes);
        for message in [
            RouteNetlinkMessage::NewRoute(route.clone()),
            RouteNetlinkMessage::DelRoute(route),
        ] {
            assert_eq!(news_of(&NetlinkMessage::from(message)), expected);
        }
    }
}
