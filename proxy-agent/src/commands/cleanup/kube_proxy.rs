//! `proxy-agent cleanup --kube-proxy`: removes what kube-proxy leaves in netfilter.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use tracing::{debug, warn};

use crate::{
    commands::takeover,
    dataplane::pins::Pins,
    sys::netfilter::{conntrack, nftables},
    takeover::rules::{NFTABLES_TABLE, Rules},
};

/// Variants of iptables: each sees its own rules only.
const VARIANTS: [&str; 4] = [
    "iptables-nft",
    "iptables-legacy",
    "ip6tables-nft",
    "ip6tables-legacy",
];
/// Beginnings of the names of chains of kube-proxy. Those of the kubelet are others.
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-",
    "KUBE-LOAD-BALANCER",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-EXT-",
];

/// Removes kube-proxy's rules, if nothing breaks by that, or if forced to.
pub(super) fn remove(root: &Path, force: bool) -> anyhow::Result<()> {
    if !force {
        let status = takeover::status(&Pins::new(root))?;
        let objections = status.objections();
        ensure!(
            objections.is_empty(),
            "kube-proxy's rules are still needed: {} (--force removes them anyway)",
            objections.join("; ")
        );
    }
    remove_tables().context("remove kube-proxy's tables")?;
    for variant in VARIANTS {
        remove_chains(variant).with_context(|| format!("remove chains by {variant}"))?;
    }
    let left = Rules::read().context("read netfilter's rules")?;
    let left: Vec<_> = left.of_kube_proxy.into_iter().collect();
    ensure!(
        left.is_empty(),
        "still there: {}; remove that by `kube-proxy --cleanup`, or run this where iptables is installed",
        left.join(", ")
    );
    Ok(())
}

/// Removes the tables of mode nftables. The kernel stops to translate open connections with
/// the last chain of type nat, so chains that packets come to stay, without rules, as long as
/// there are such connections.
fn remove_tables() -> io::Result<()> {
    let mut chains = nftables::chains()?;
    chains.retain(|chain| chain.table == NFTABLES_TABLE);
    let families: BTreeSet<_> = chains.iter().map(|chain| chain.family).collect();
    for family in &families {
        nftables::remove_rules(*family, NFTABLES_TABLE)?;
    }
    for chain in chains.iter().filter(|chain| !chain.is_base) {
        // One that a map leads to goes with the table.
        if let Err(error) = nftables::remove_chain(chain) {
            debug!("chain {} is not removed yet: {error}", chain.name);
        }
    }
    for family in families {
        if is_translating(family)? {
            warn!(
                "table {NFTABLES_TABLE} has no rules any more, but stays while open connections are translated; \
                 `nft delete table` or a restart removes it"
            );
        } else {
            nftables::remove_table(family, NFTABLES_TABLE)?;
        }
    }
    Ok(())
}

/// Returns whether netfilter changes an address or a port of an open connection.
fn is_translating(family: u8) -> io::Result<bool> {
    let mut found = false;
    conntrack::list(family.into(), |connection| {
        found |= !connection.is_over && connection.is_translated();
    })?;
    Ok(found)
}

/// Removes the chains that one variant of iptables sees, where it is installed.
fn remove_chains(variant: &str) -> anyhow::Result<()> {
    let saved = match Command::new(format!("{variant}-save")).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        output => output?,
    };
    let Some(removal) = removal(&String::from_utf8_lossy(&saved.stdout)) else {
        return Ok(());
    };
    let mut restore = Command::new(format!("{variant}-restore"))
        .args(["--noflush", "--wait", "5"])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = restore.stdin.take() {
        input.write_all(removal.as_bytes())?;
    }
    ensure!(restore.wait()?.success(), "{variant}-restore failed");
    Ok(())
}

/// What `iptables-restore --noflush` removes kube-proxy's chains by; nothing if there are
/// none. A chain that is named is emptied, and can be deleted when no rule leads to it.
fn removal(saved: &str) -> Option<String> {
    let mut input = String::new();
    let mut chains = BTreeSet::new();
    let mut body = String::new();
    let mut found = false;
    for line in saved.lines() {
        if let Some(table) = line.strip_prefix('*') {
            let _ = writeln!(body, "*{table}");
        } else if let Some(chain) = line.strip_prefix(':').and_then(|l| l.split(' ').next()) {
            if is_kube_proxys(chain) {
                let _ = writeln!(body, ":{chain} - [0:0]");
                chains.insert(chain);
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let mut words = rule.split(' ');
            let own = words.next().is_some_and(is_kube_proxys);
            let target = words.skip_while(|word| *word != "-j").nth(1);
            if !own && target.is_some_and(is_kube_proxys) {
                let _ = writeln!(body, "-D {rule}");
            }
        } else if line == "COMMIT" {
            for chain in &chains {
                let _ = writeln!(body, "-X {chain}");
            }
            if !chains.is_empty() {
                found = true;
                let _ = writeln!(input, "{body}COMMIT");
            }
            body.clear();
            chains.clear();
        }
    }
    found.then_some(input)
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.iter().any(|beginning| chain.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-save
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-ABC
COMMIT
";

    #[test]
    fn kube_proxys_chains_are_removed_and_no_others() {
        let expected = "\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-ABC
COMMIT
";
        assert_eq!(removal(SAVED).as_deref(), Some(expected));
        assert_eq!(removal("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"), None);
    }
}
