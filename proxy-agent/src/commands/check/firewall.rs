//! Netfilter rules that stop forwarded traffic, and leftovers of kube-proxy.
//!
//! kube-proxy accepts its own traffic where the FORWARD policy is DROP, as
//! Docker and ufw set it. Tandem adds no rules, so it can only tell (E15).

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::commands::check::Finding;

/// The rules of this network namespace, as the tools print them; `None` where
/// a tool is not installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    pub iptables_v4: Option<String>,
    pub iptables_v6: Option<String>,
    /// JSON.
    pub nft: Option<String>,
    /// kube-proxy's dummy device for IPVS.
    pub ipvs: bool,
}

/// Tables of both families show up in nft as well as in iptables.
struct Tables {
    name: &'static str,
    tool: &'static str,
    nft: &'static str,
}

const V4: Tables = Tables {
    name: "IPv4",
    tool: "iptables",
    nft: "ip",
};
const V6: Tables = Tables {
    name: "IPv6",
    tool: "ip6tables",
    nft: "ip6",
};

/// Judges the rules. Reports each finding once, whichever tools show it.
pub fn evaluate(firewall: &Firewall) -> Vec<Finding> {
    let nft = firewall.nft.as_deref().map(parse_nft);
    let mut findings = BTreeSet::new();
    for (tables, rules) in [(V4, &firewall.iptables_v4), (V6, &firewall.iptables_v6)] {
        if let Some(rules) = rules {
            findings.extend(iptables(&tables, rules));
        }
    }
    if let Some(objects) = &nft {
        findings.extend(objects.iter().filter_map(nft_object));
    }
    if firewall.ipvs {
        findings.insert(leftover("device kube-ipvs0"));
    }
    let dropped = |finding: &Finding| finding.what.contains("policy DROP");
    let mut all: Vec<_> = findings.into_iter().collect();
    if nft.is_none() && firewall.iptables_v4.is_none() {
        all.push(Finding::warn(
            "neither iptables-save nor nft is installed here",
            "see yourself that forwarded traffic is not dropped (`iptables -S FORWARD`)",
        ));
    } else {
        if !all.iter().any(dropped) {
            all.push(Finding::ok("forwarded traffic is accepted by default"));
        }
        if !all
            .iter()
            .any(|finding| finding.what.contains("kube-proxy"))
        {
            all.push(Finding::ok("no rules of kube-proxy"));
        }
    }
    all
}

fn iptables(tables: &Tables, rules: &str) -> Vec<Finding> {
    let mut table = "";
    let mut findings = Vec::new();
    for line in rules.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            match (table, words.next(), words.next()) {
                ("filter", Some("FORWARD"), Some("DROP")) => findings.push(drops(tables)),
                (_, Some("KUBE-SERVICES"), _) => findings.push(chains(tables)),
                _ => {}
            }
        }
    }
    findings
}

fn drops(tables: &Tables) -> Finding {
    let Tables { name, tool, .. } = tables;
    Finding::warn(
        format!("{name}: chain FORWARD has policy DROP"),
        format!("accept pods' and Services' traffic there, or `{tool} -P FORWARD ACCEPT`"),
    )
}

fn chains(tables: &Tables) -> Finding {
    leftover(&format!("{}: chains KUBE-SERVICES", tables.name))
}

fn leftover(what: &str) -> Finding {
    Finding::warn(
        format!("{what} of kube-proxy"),
        "stop kube-proxy, then `kube-proxy --cleanup`",
    )
}

/// The output of `nft -j list ruleset`.
#[derive(Debug, Default, Deserialize)]
struct Ruleset {
    nftables: Vec<Object>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object {
    table: Option<Table>,
    chain: Option<Chain>,
}

#[derive(Debug, Deserialize)]
struct Table {
    family: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

fn parse_nft(json: &str) -> Vec<Object> {
    serde_json::from_str::<Ruleset>(json)
        .unwrap_or_default()
        .nftables
}

fn nft_object(object: &Object) -> Option<Finding> {
    if let Some(Table { family, name }) = &object.table {
        return (name == "kube-proxy")
            .then(|| leftover(&format!("nftables: table {family} {name}")));
    }
    let chain = object.chain.as_ref()?;
    // What iptables shows under the same name.
    let tables = [V4, V6]
        .into_iter()
        .find(|tables| tables.nft == chain.family);
    if chain.name == "KUBE-SERVICES" {
        return tables.map(|tables| chains(&tables));
    }
    if chain.hook.as_deref() != Some("forward") || chain.policy.as_deref() != Some("drop") {
        return None;
    }
    let Chain {
        family,
        table,
        name,
        ..
    } = chain;
    Some(match tables {
        Some(tables) if table == "filter" && name == "FORWARD" => drops(&tables),
        _ => Finding::warn(
            format!("nftables: chain {family} {table} {name} has policy DROP"),
            format!(
                "accept pods' and Services' traffic there, or \
                 `nft 'add chain {family} {table} {name} {{ policy accept; }}'`"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPTABLES: &str = "*nat\n:KUBE-SERVICES - [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n\
                            *filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [3:180]\nCOMMIT\n";
    const NFT: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.9"}},
        {"table": {"family": "ip", "name": "filter", "handle": 1}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD",
                   "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "nat", "name": "KUBE-SERVICES"}},
        {"chain": {"family": "inet", "table": "mine", "name": "guard",
                   "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "mine", "name": "in",
                   "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"rule": {"family": "inet", "table": "mine", "chain": "guard", "expr": []}},
        {"table": {"family": "ip6", "name": "kube-proxy", "handle": 9}}
    ]}"#;

    fn lines(firewall: &Firewall) -> Vec<String> {
        evaluate(firewall).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn says_each_thing_once_whichever_tool_shows_it() {
        let both = Firewall {
            iptables_v4: Some(IPTABLES.to_owned()),
            nft: Some(NFT.to_owned()),
            ..Firewall::default()
        };
        let expected = [
            "warn  IPv4: chain FORWARD has policy DROP: accept pods' and Services' traffic \
             there, or `iptables -P FORWARD ACCEPT`",
            "warn  IPv4: chains KUBE-SERVICES of kube-proxy: stop kube-proxy, then \
             `kube-proxy --cleanup`",
            "warn  nftables: chain inet mine guard has policy DROP: accept pods' and Services' \
             traffic there, or `nft 'add chain inet mine guard { policy accept; }'`",
            "warn  nftables: table ip6 kube-proxy of kube-proxy: stop kube-proxy, then \
             `kube-proxy --cleanup`",
        ];
        assert_eq!(lines(&both), expected);
        let nft_alone = Firewall {
            iptables_v4: None,
            ..both
        };
        assert_eq!(lines(&nft_alone), expected);
    }

    #[test]
    fn both_families_count() {
        let v6 = Firewall {
            iptables_v4: Some(String::new()),
            iptables_v6: Some(IPTABLES.to_owned()),
            ..Firewall::default()
        };
        assert!(lines(&v6)[0].contains("`ip6tables -P FORWARD ACCEPT`"));
    }

    #[test]
    fn no_rules_are_good_and_no_tools_are_not() {
        let none = Firewall {
            iptables_v4: Some(String::new()),
            nft: Some(r#"{"nftables": []}"#.to_owned()),
            ..Firewall::default()
        };
        assert!(lines(&none).iter().all(|line| line.starts_with("ok")));
        let unknown = lines(&Firewall::default());
        assert!(unknown[0].starts_with("warn  neither"), "{unknown:?}");
    }

    #[test]
    fn the_ipvs_device_is_a_leftover() {
        let ipvs = Firewall {
            ipvs: true,
            ..Firewall::default()
        };
        assert!(lines(&ipvs)[0].contains("kube-ipvs0"));
    }
}
