//! Reads links and addresses, and tells when they change.

use std::io;

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection, packet_core::NetlinkMessage, sys::SocketAddr,
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
}

/// A connection that lists devices and hears of changes.
pub struct Netlink {
    handle: Handle,
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
        ])
        .map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle, messages })
    }

    /// Waits for a change; false if there will be none any more. What changed
    /// is found by listing: messages may be lost under load, the lists are not.
    pub async fn changed(&mut self) -> bool {
        if self.messages.next().await.is_none() {
            return false;
        }
        while self.messages.try_recv().is_ok() {}
        true
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
