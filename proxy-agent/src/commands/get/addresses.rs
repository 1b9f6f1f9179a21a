//! `get addresses`: what the node takes for its own addresses, and where
//! NodePorts are served.

use ipnet::IpNet;
use proxy_common::{
    family::{V4, V6},
    local_addr::LocalAddr,
};
use serde::Serialize;

use crate::{
    commands::get::render::{self, Row},
    dataplane::{
        local_addrs::{Entries, LocalAddrTable},
        pins::Pins,
        tables::TableError,
    },
    model::IpFamily,
};

/// An entry of `LOCAL_ADDRS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressRow {
    pub prefix: String,
    /// True if NodePorts are served on it.
    pub node_ports: bool,
    /// True if only this node's processes reach it.
    pub loopback: bool,
}

impl Row for AddressRow {
    const HEADERS: &'static [&'static str] = &["PREFIX", "NODE-PORTS", "LOOPBACK"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.clone(),
            render::yes(self.node_ports),
            render::yes(self.loopback),
        ]
    }
}

/// The rows of a table.
pub fn rows(entries: &Entries) -> Vec<AddressRow> {
    let row = |(prefix, value): (&IpNet, &LocalAddr)| AddressRow {
        prefix: prefix.to_string(),
        node_ports: value.flags & LocalAddr::NODE_PORTS != 0,
        loopback: value.flags & LocalAddr::LOOPBACK != 0,
    };
    entries.iter().map(row).collect()
}

/// The entries of the families asked for.
pub(super) fn read(pins: &Pins, family: Option<IpFamily>) -> Result<Vec<AddressRow>, TableError> {
    let mut found = Vec::new();
    if family != Some(IpFamily::V6) {
        found.extend(rows(LocalAddrTable::<V4>::open(pins)?.entries()));
    }
    if family != Some(IpFamily::V4) {
        found.extend(rows(LocalAddrTable::<V6>::open(pins)?.entries()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_where_node_ports_are() {
        let entry = |prefix: &str, flags| {
            let prefix: IpNet = prefix.parse().expect("a prefix");
            (prefix, LocalAddr { flags })
        };
        let entries = Entries::from([
            entry("127.0.0.0/8", LocalAddr::LOOPBACK),
            entry("192.0.2.1/32", LocalAddr::NODE_PORTS),
            entry("::1/128", LocalAddr::LOOPBACK | LocalAddr::NODE_PORTS),
        ]);
        let cells: Vec<_> = rows(&entries)
            .iter()
            .map(|row| row.cells().join(" "))
            .collect();
        let expected = [
            "127.0.0.0/8 no yes",
            "192.0.2.1/32 yes no",
            "::1/128 yes yes",
        ];
        assert_eq!(cells, expected);
    }
}
