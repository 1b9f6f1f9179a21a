//! The routes of load balancers' addresses to nodes.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, process::Command};

use anyhow::Result;

use crate::{
    cluster::{addresses, spec::Family},
    exec,
};

/// The nodes that addresses are routed to.
#[derive(Default)]
pub(super) struct Routes {
    nodes: BTreeMap<IpAddr, Vec<u8>>,
}

impl Routes {
    pub(super) fn bring_to(&mut self, wanted: &BTreeMap<IpAddr, Vec<u8>>) -> Result<()> {
        for (address, nodes) in wanted {
            if nodes.is_empty() || self.nodes.get(address) == Some(nodes) {
                continue;
            }
            eprintln!("{address} is for nodes {nodes:?}");
            exec::output(Command::new("ip").args(replace(*address, nodes)))?;
            self.nodes.insert(*address, nodes.clone());
        }
        let served = |address| wanted.get(address).is_some_and(|nodes| !nodes.is_empty());
        let useless: Vec<_> = self.nodes.keys().copied().collect();
        for address in useless.iter().filter(|address| !served(*address)) {
            eprintln!("{address} is for nobody");
            exec::output(Command::new("ip").args(["route", "delete", &address.to_string()]))?;
            self.nodes.remove(address);
        }
        Ok(())
    }
}

/// The arguments that route an address to several nodes, by each flow's hash.
fn replace(address: IpAddr, nodes: &[u8]) -> Vec<String> {
    let family = Family::of(address);
    let mut text = format!("route replace {address}");
    for node in nodes {
        let _ = write!(text, " nexthop via {}", addresses::node(family, *node));
    }
    text.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("172.28.0.1", &[1, 2], "route replace 172.28.0.1 nexthop via 172.30.0.11 nexthop via 172.30.0.12")]
    #[case("fd00:28::1", &[2], "route replace fd00:28::1 nexthop via fd00:30::c")]
    fn an_address_leads_to_the_nodes_of_its_family(
        #[case] address: &str,
        #[case] nodes: &[u8],
        #[case] expected: &str,
    ) {
        assert_eq!(replace(address.parse().unwrap(), nodes).join(" "), expected);
    }
}
