//! The specification of a cluster, as the command line says it, and as it is kept
//! beside a cluster that runs.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::addresses;

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Family {
    #[serde(rename = "ipv4")]
    V4,
    #[serde(rename = "ipv6")]
    V6,
}

/// The families of a cluster, the default one of Services first.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Families {
    pub(crate) first: Family,
    pub(crate) second: Option<Family>,
}

/// How pods get their addresses and reach each other.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cni {
    /// A bridge on each node, and routes between the nodes
    Bridge,
    /// A pair of devices for each pod, and routes between the nodes
    Ptp,
    /// Tunnels between the nodes
    FlannelVxlan,
    /// Routes between the nodes that flannel makes
    FlannelHostGw,
    /// Pods on the network of the nodes, past their devices
    Macvlan,
}

/// The Service proxy of a node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Proxy {
    /// This repository's agent, by its own manifests
    Tandem,
    /// kube-proxy's mode iptables
    Iptables,
    /// kube-proxy's mode nftables
    Nftables,
    /// Nothing: Services do not work
    None,
}

/// A cluster.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Spec {
    pub(crate) families: Families,
    /// Those of Services, which may be fewer.
    pub(crate) services: Families,
    pub(crate) cni: Cni,
    /// The proxy of each node; there is at least one.
    pub(crate) nodes: Vec<Proxy>,
}

impl Spec {
    /// A cluster whose last nodes have other proxies than the rest.
    pub(crate) fn new(
        count: u8,
        families: Families,
        cni: Cni,
        proxy: Proxy,
        others: &[Share],
    ) -> Result<Self> {
        ensure!(
            (1..=addresses::NODES).contains(&count),
            "a cluster has 1 to {} nodes",
            addresses::NODES
        );
        let mut nodes = Vec::new();
        for share in others {
            nodes.extend(std::iter::repeat_n(share.proxy, share.count.into()));
        }
        let count = usize::from(count);
        ensure!(
            nodes.len() <= count,
            "--nodes-with names {} nodes, and there are {count}",
            nodes.len()
        );
        while nodes.len() < count {
            nodes.insert(0, proxy);
        }
        Ok(Self {
            families,
            services: families,
            cni,
            nodes,
        })
    }

    /// Numbers of nodes, with their proxies.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (u8, Proxy)> {
        (1..).zip(self.nodes.iter().copied())
    }

    /// The proxy of the node with this number.
    pub(crate) fn proxy(&self, number: u8) -> Proxy {
        let index = usize::from(number).wrapping_sub(1);
        self.nodes.get(index).copied().unwrap_or(Proxy::None)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("write down the cluster")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
    }
}

impl Families {
    pub(crate) fn list(self) -> impl Iterator<Item = Family> {
        [self.first].into_iter().chain(self.second)
    }

    /// Text for each family, with commas between, as Kubernetes' flags want it.
    pub(crate) fn join<T: ToString>(self, text: impl Fn(Family) -> T) -> String {
        let parts: Vec<_> = self.list().map(|family| text(family).to_string()).collect();
        parts.join(",")
    }
}

impl std::str::FromStr for Families {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut families = text.split(',').map(|word| match word {
            "ipv4" => Ok(Family::V4),
            "ipv6" => Ok(Family::V6),
            other => bail!("{other} is neither ipv4 nor ipv6"),
        });
        let first = families.next().context("no family")??;
        let second = families.next().transpose()?;
        ensure!(
            second != Some(first) && families.next().is_none(),
            "{text} names a family twice"
        );
        Ok(Self { first, second })
    }
}

impl Family {
    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Its digit, as `ip -4` and `ip -6` want it.
    pub(crate) const fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

impl Cni {
    /// Whether flannel makes the routes between the nodes.
    pub(crate) const fn is_flannel(self) -> bool {
        matches!(self, Self::FlannelVxlan | Self::FlannelHostGw)
    }
}

impl Proxy {
    /// The name of kube-proxy's mode, if it is one.
    pub(crate) const fn mode(self) -> Option<&'static str> {
        match self {
            Self::Iptables => Some("iptables"),
            Self::Nftables => Some("nftables"),
            Self::Tandem | Self::None => None,
        }
    }
}

/// Nodes that have another proxy than the others, as `nftables=1`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Share {
    proxy: Proxy,
    count: u8,
}

impl std::str::FromStr for Share {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (proxy, count) = text
            .split_once('=')
            .with_context(|| format!("{text} is not like nftables=1"))?;
        Ok(Self {
            proxy: Proxy::from_str(proxy, false).map_err(anyhow::Error::msg)?,
            count: count
                .parse()
                .with_context(|| format!("{count} is no number of nodes"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ipv4", Family::V4, None)]
    #[case("ipv6", Family::V6, None)]
    #[case("ipv4,ipv6", Family::V4, Some(Family::V6))]
    #[case("ipv6,ipv4", Family::V6, Some(Family::V4))]
    fn families_keep_their_order(
        #[case] text: &str,
        #[case] first: Family,
        #[case] second: Option<Family>,
    ) {
        let families: Families = text.parse().unwrap();
        assert_eq!(families, Families { first, second });
    }

    #[rstest]
    #[case("")]
    #[case("ipv4,ipv4")]
    #[case("ipv4,ipv6,ipv4")]
    #[case("ipv5")]
    fn other_families_are_refused(#[case] text: &str) {
        assert!(text.parse::<Families>().is_err());
    }

    fn spec(count: u8, others: &[&str]) -> Result<Spec> {
        let others: Vec<_> = others.iter().map(|text| text.parse().unwrap()).collect();
        let families = "ipv4,ipv6".parse()?;
        Spec::new(count, families, Cni::Ptp, Proxy::Tandem, &others)
    }

    #[test]
    fn the_last_nodes_have_the_other_proxies() {
        let spec = spec(4, &["nftables=1", "iptables=1"]).unwrap();
        let expected = [
            Proxy::Tandem,
            Proxy::Tandem,
            Proxy::Nftables,
            Proxy::Iptables,
        ];
        assert_eq!(spec.nodes, expected);
    }

    #[rstest]
    #[case::none(0, &[])]
    #[case::more_than_addresses(100, &[])]
    #[case::more_others_than_nodes(2, &["iptables=3"])]
    fn impossible_numbers_are_refused(#[case] count: u8, #[case] others: &[&str]) {
        assert!(spec(count, others).is_err());
    }

    #[rstest]
    #[case("nftables")]
    #[case("ipvs=1")]
    #[case("tandem=many")]
    fn odd_shares_are_refused(#[case] text: &str) {
        assert!(text.parse::<Share>().is_err());
    }

    #[test]
    fn what_was_written_down_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spec.json");
        let spec = spec(3, &["none=1"]).unwrap();
        spec.write(&path).unwrap();
        assert_eq!(Spec::read(&path).unwrap(), spec);
    }
}
