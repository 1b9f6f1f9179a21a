//! Rules in netfilter: kube-proxy's, and those that drop what nobody accepts. Asks the
//! kernel, so that no tool has to be there.

use std::{collections::BTreeSet, io, path::Path};

use crate::{
    model::IpFamily,
    sys::netfilter::{
        iptables::Table,
        nftables::{self, Chain},
    },
};

/// The table of kube-proxy's mode nftables.
pub const NFTABLES_TABLE: &str = "kube-proxy";
/// A chain of kube-proxy's modes iptables and ipvs.
const CHAIN: &str = "KUBE-SERVICES";
/// The device of kube-proxy's mode ipvs.
const IPVS: &str = "/proc/thread-self/net/dev_snmp6/kube-ipvs0";
const IPVS_SYSCTLS: &str = "/proc/sys/net/ipv4/conf/kube-ipvs0";

/// What was found in this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Names of what is kube-proxy's.
    pub of_kube_proxy: BTreeSet<String>,
    /// Chains that drop forwarded packets which no rule accepts.
    pub dropping: BTreeSet<String>,
}

impl Rules {
    /// Reads them.
    pub fn read() -> io::Result<Self> {
        let mut rules = Self::of_chains(&nftables::chains()?);
        for family in IpFamily::ALL {
            rules.add_legacy(family)?;
        }
        if Path::new(IPVS).exists() || Path::new(IPVS_SYSCTLS).exists() {
            rules.of_kube_proxy.insert("device kube-ipvs0".to_owned());
        }
        Ok(rules)
    }

    fn of_chains(chains: &[Chain]) -> Self {
        let mut rules = Self::default();
        for chain in chains {
            let family = family_name(chain.family);
            let Chain { table, name, .. } = chain;
            // One that only has chains for netfilter to translate by does nothing.
            if table == NFTABLES_TABLE && !chain.is_base {
                let found = format!("nftables table {family} {table}");
                rules.of_kube_proxy.insert(found);
            } else if name == CHAIN && table != NFTABLES_TABLE {
                let found = format!("iptables-nft chains {CHAIN} of {family} {table}");
                rules.of_kube_proxy.insert(found);
            }
            if chain.drops_forwarded {
                rules
                    .dropping
                    .insert(format!("chain {family} {table} {name}"));
            }
        }
        rules
    }

    fn add_legacy(&mut self, family: IpFamily) -> io::Result<()> {
        let tool = match family {
            IpFamily::V4 => "iptables-legacy",
            IpFamily::V6 => "ip6tables-legacy",
        };
        if Table::read(family, "nat")?.is_some_and(|table| table.mentions(CHAIN)) {
            let found = format!("{tool} chains {CHAIN}");
            self.of_kube_proxy.insert(found);
        }
        if Table::read(family, "filter")?.is_some_and(|table| table.drops_forwarded()) {
            self.dropping.insert(format!("chain FORWARD of {tool}"));
        }
        Ok(())
    }
}

/// `NFPROTO_…` as nft names it.
fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_both_modes_are_kube_proxys() {
        let chain = |family, table: &str, name: &str, drops_forwarded| Chain {
            family,
            table: table.to_owned(),
            name: name.to_owned(),
            is_base: name.contains('-'),
            drops_forwarded,
        };
        let rules = Rules::of_chains(&[
            chain(2, "nat", "KUBE-SERVICES", false),
            chain(2, "kube-proxy", "nat-output", false),
            chain(10, "kube-proxy", "services", false),
            chain(10, "kube-proxy", "nat-prerouting", false),
            chain(2, "filter", "FORWARD", true),
            chain(1, "mine", "input", false),
        ]);
        let found: Vec<_> = rules.of_kube_proxy.iter().map(String::as_str).collect();
        assert_eq!(
            found,
            [
                "iptables-nft chains KUBE-SERVICES of ip nat",
                "nftables table ip6 kube-proxy"
            ]
        );
        let dropping: Vec<_> = rules.dropping.iter().map(String::as_str).collect();
        assert_eq!(dropping, ["chain ip filter FORWARD"]);
    }
}
