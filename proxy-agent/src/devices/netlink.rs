//! Reads links, addresses and local routes, and tells when they change.

use std::{io, net::IpAddr};

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{
    Handle, MulticastGroup, new_connection_with_strict_check, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};

use crate::devices::{Address, Layer, Link};

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

/// Connections that list devices and routes and hear of changes.
pub struct Netlink {
    handle: Handle,
    /// Lists only what is asked for: a router's tables may be long.
    filtering: Handle,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Netlink {
    /// Opens the connection and subscribes to changes, before anything is
    /// listed, so that none is missed in between.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        let (connection, filtering, _) =
            new_connection_with_strict_check().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            filtering,
            messages,
        })
    }

    /// Waits for a change; false if there will be none any more. What changed
    /// is found by listing: messages may be lost under load, the lists are not.
    pub async fn changed(&mut self) -> bool {
        loop {
            let Some((message, _)) = self.messages.next().await else {
                return false;
            };
            let mut concerns = concerns_us(&message);
            while let Ok((message, _)) = self.messages.try_recv() {
                concerns |= concerns_us(&message);
            }
            if concerns {
                return true;
            }
        }
    }

    /// All devices of this network namespace.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.handle
            .link()
            .get()
            .execute()
            .map_ok(|message| link(&message))
            .try_collect()
            .await
            .map_err(NetlinkError::Links)
    }

    /// All addresses of this network namespace.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let addresses: Vec<Option<Address>> = self
            .handle
            .address()
            .get()
            .execute()
            .map_ok(|message| address(&message))
            .try_collect()
            .await
            .map_err(NetlinkError::Addresses)?;
        Ok(addresses.into_iter().flatten().collect())
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

    /// What `take` makes of the routes that fit the request.
    async fn routes<T>(
        &self,
        request: RouteMessage,
        take: impl Fn(&RouteMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let family = request.header.address_family;
        let routes = self.filtering.route().get(request).execute();
        let taken: Result<Vec<_>, _> = routes
            .map_ok(|route| (route.header.address_family == family).then(|| take(&route))?)
            .try_collect()
            .await;
        match taken {
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

/// Whether a message may mean that devices or local addresses changed. A
/// router's other routes may change all the time.
fn concerns_us(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => route.header.table == LOCAL_TABLE,
        // Also that messages were lost.
        _ => true,
    }
}

fn local_prefix(route: &RouteMessage) -> Option<IpNet> {
    if route.header.table != LOCAL_TABLE || route.header.kind != RouteType::Local {
        return None;
    }
    // Without an address, the route is for all of them.
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
        is_bridge: false,
        mac: [0; 6],
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Address(mac) => link.mac = mac[..].try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    link
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
    Some(Address {
        ifindex: message.header.index,
        ip: ip?,
        usable: message.header.scope == AddressScope::Universe && !flags.intersects(transient),
    })
}
