//! Decoding of netlink's messages about addresses.

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use crate::node::devices::Address;

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
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
