//! Reads links, addresses and local routes, and tells when they change.

mod address;
#[cfg(test)]
pub(super) mod fake;
mod link;
mod list;
mod route;

use std::io;

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteHeader, RouteMessage, RouteType},
};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};

use self::{
    address::address,
    link::link,
    list::whole_list,
    route::{LOCAL_TABLE, local_prefix, main_route},
};
use super::devices::{Address, Link, Routes};
use crate::model::IpFamily;

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

/// A notification. It does not say what changed; that is found by listing: messages may be
/// lost under load, the lists are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Routes of the main table changed, and nothing else.
    Routes,
    /// Devices, addresses or local routes may have changed.
    Devices,
    /// The connection is lost: nothing more will be heard.
    Lost,
}

/// The node's network, as far as the controllers use it.
pub(super) trait Network {
    /// Waits for a change that concerns us.
    async fn changed(&mut self) -> Event;
    /// Opens the connection anew.
    fn reopen(&mut self) -> Result<(), NetlinkError>;
    async fn links(&self) -> Result<Vec<Link>, NetlinkError>;
    async fn addresses(&self) -> Result<Vec<Address>, NetlinkError>;
    async fn local_prefixes(&self) -> Result<Vec<IpNet>, NetlinkError>;
    async fn main_routes(&self) -> Result<Routes, NetlinkError>;
}

impl Network for Netlink {
    async fn changed(&mut self) -> Event {
        Self::changed(self).await
    }

    fn reopen(&mut self) -> Result<(), NetlinkError> {
        *self = Self::open()?;
        Ok(())
    }

    async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        Self::links(self).await
    }

    async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        Self::addresses(self).await
    }

    async fn local_prefixes(&self) -> Result<Vec<IpNet>, NetlinkError> {
        Self::local_prefixes(self).await
    }

    async fn main_routes(&self) -> Result<Routes, NetlinkError> {
        Self::main_routes(self).await
    }
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
    pub async fn changed(&mut self) -> Event {
        loop {
            let Some((message, _)) = self.messages.next().await else {
                return Event::Lost;
            };
            let mut event = event_of(&message);
            while let Ok((message, _)) = self.messages.try_recv() {
                event = event.max(event_of(&message));
            }
            if let Some(event) = event {
                return event;
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

    /// Returns the routes of the main table, in both families.
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

    /// Returns whether the main table leads anywhere at all in a family.
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

    /// Applies `take` to the routes that match the request, and returns all results.
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

fn lister() -> Result<rtnetlink::Handle, NetlinkError> {
    list::lister().map_err(NetlinkError::Open)
}

/// Returns the event of a message; `None` if the message does not concern us.
fn event_of(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<Event> {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => match route.header.table {
            LOCAL_TABLE => Some(Event::Devices),
            RouteHeader::RT_TABLE_MAIN => (!main_route(route).is_empty()).then_some(Event::Routes),
            _ => None,
        },
        // Also that messages were lost.
        _ => Some(Event::Devices),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteAttribute;
    use rstest::rstest;

    use super::{
        route::tests::{gateway, route},
        *,
    };
    use crate::node::devices::Layer;

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

    /// A router's routes come and go all the time; some concern nobody here.
    #[rstest]
    #[case(255, vec![], Some(Event::Devices))]
    #[case(254, vec![RouteAttribute::Oif(2), gateway()], Some(Event::Routes))]
    #[case(254, vec![RouteAttribute::Oif(2)], Some(Event::Routes))]
    #[case(254, vec![], None)]
    #[case(100, vec![RouteAttribute::Oif(2), gateway()], None)]
    fn events_are_told_by_their_table(
        #[case] table: u8,
        #[case] attributes: Vec<RouteAttribute>,
        #[case] expected: Option<Event>,
    ) {
        let route = route(table, RouteType::Unicast, 24, attributes);
        for message in [
            RouteNetlinkMessage::NewRoute(route.clone()),
            RouteNetlinkMessage::DelRoute(route),
        ] {
            assert_eq!(event_of(&NetlinkMessage::from(message)), expected);
        }
    }
}
