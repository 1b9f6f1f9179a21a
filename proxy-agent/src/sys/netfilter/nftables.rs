//! Chains of nftables, those of `iptables-nft` among them.

use std::io;

use super::{Socket, array, attribute, put};

const GET_CHAIN: u16 = 0x0a04;
const DELETE_TABLE: u16 = 0x0a02;
const DELETE_CHAIN: u16 = 0x0a05;
const DELETE_RULE: u16 = 0x0a08;

/// Attribute of a table, and of rules.
const TABLE_NAME: u16 = 1;

/// Attributes of a chain.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
/// Attribute of a hook.
const NUMBER: u16 = 1;

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP`.
const DROP: u32 = 0;

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// `NFPROTO_…`: of one IP family, or of both.
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    /// Packets come to it from the kernel, not by a rule.
    pub(crate) is_base: bool,
    /// Forwarded packets that no rule accepts are dropped.
    pub(crate) drops_forwarded: bool,
}

/// All chains of this network namespace.
pub(crate) fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    Socket::open()?.list(GET_CHAIN, 0, |family, attributes| {
        chains.extend(parse(family, attributes));
    })?;
    Ok(chains)
}

/// Removes all rules of a table.
pub(crate) fn remove_rules(family: u8, table: &str) -> io::Result<()> {
    Socket::open()?.change(DELETE_RULE, family, &named(&[(TABLE_NAME, table)]))
}

/// Removes a chain that no rule leads to.
pub(crate) fn remove_chain(chain: &Chain) -> io::Result<()> {
    let attributes = named(&[(TABLE, &chain.table), (NAME, &chain.name)]);
    Socket::open()?.change(DELETE_CHAIN, chain.family, &attributes)
}

/// Removes a table with all that is in it.
pub(crate) fn remove_table(family: u8, name: &str) -> io::Result<()> {
    Socket::open()?.change(DELETE_TABLE, family, &named(&[(TABLE_NAME, name)]))
}

/// Attributes that are text.
fn named(names: &[(u16, &str)]) -> Vec<u8> {
    let mut attributes = Vec::new();
    for (kind, name) in names {
        put(&mut attributes, *kind, format!("{name}\0").as_bytes());
    }
    attributes
}

fn parse(family: u8, attributes: &[u8]) -> Option<Chain> {
    let text = |kind| {
        let text = attribute(attributes, kind)?.split(|byte| *byte == 0).next();
        Some(String::from_utf8_lossy(text?).into_owned())
    };
    let number = |bytes: &[u8]| array(bytes, 0).map(u32::from_be_bytes);
    let hook = attribute(attributes, HOOK).and_then(|hook| number(attribute(hook, NUMBER)?));
    let policy = attribute(attributes, POLICY).and_then(number);
    Some(Chain {
        family,
        table: text(TABLE)?,
        name: text(NAME)?,
        is_base: hook.is_some(),
        drops_forwarded: hook == Some(FORWARD) && policy == Some(DROP),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::put_nested, *};

    #[test]
    fn a_chain_is_read() {
        let mut message = Vec::new();
        put(&mut message, TABLE, b"filter\0");
        put(&mut message, NAME, b"FORWARD\0");
        let plain = parse(2, &message).expect("a chain");
        assert!(!plain.drops_forwarded);
        put_nested(&mut message, HOOK, |hook| put(hook, NUMBER, &[0, 0, 0, 2]));
        put(&mut message, POLICY, &[0; 4]);
        let expected = Chain {
            is_base: true,
            drops_forwarded: true,
            ..plain
        };
        assert_eq!(parse(2, &message), Some(expected));
        assert_eq!(parse(2, b"12"), None);
    }
}
