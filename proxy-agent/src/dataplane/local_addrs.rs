//! `LOCAL_ADDRS` in the kernel.

use std::collections::BTreeMap;

use aya::maps::{
    Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use ipnet::IpNet;
use proxy_common::{family::Family, local_addr::LocalAddr, table::Table};

use crate::{
    dataplane::{
        maps::Maps,
        tables::{KernelFamily, TableError, gone},
    },
    model::address::prefix_of,
};

/// The entries of one family or of both, by prefix.
pub type Entries = BTreeMap<IpNet, LocalAddr>;

/// One family's table, and what is in it.
pub struct LocalAddrTable<F: KernelFamily> {
    map: LpmTrie<MapData, F::Addr, LocalAddr>,
    /// Capacity of the table, in entries.
    entries: usize,
    known: Entries,
}

impl<F: KernelFamily> LocalAddrTable<F> {
    /// Opens the table and takes over what is in it.
    pub fn open(maps: &impl Maps) -> Result<Self, TableError> {
        let open = || {
            let data = maps.open(&name::<F>())?;
            let entries = data.info()?.max_entries() as usize;
            Ok(Self {
                map: LpmTrie::try_from(Map::from_map_data(data)?)?,
                entries,
                known: Entries::new(),
            })
        };
        let mut table = open().map_err(|source| TableError::Open {
            table: name::<F>(),
            source,
        })?;
        table.read_back()?;
        Ok(table)
    }

    /// Returns how many prefixes there is room for.
    pub fn room(&self) -> usize {
        self.entries
    }

    /// Returns the entries of the table, as last read or written.
    pub fn entries(&self) -> &Entries {
        &self.known
    }

    /// Reads what is in the table, whoever wrote it.
    pub fn read_back(&mut self) -> Result<(), TableError> {
        let mut known = Entries::new();
        for entry in &self.map {
            let (key, value) = entry.map_err(|source| TableError::Read {
                table: name::<F>(),
                source,
            })?;
            let length = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
            // The kernel admits no prefix longer than the address.
            if let Ok(prefix) = IpNet::new(F::ip(key.data()).into(), length) {
                known.insert(prefix, value);
            }
        }
        self.known = known;
        Ok(())
    }

    /// Makes the table hold what `wanted` has of this family; returns the
    /// number of changes. All of them are tried, and the first error counts.
    pub fn write(&mut self, wanted: &Entries) -> Result<usize, TableError> {
        let wanted = wanted
            .iter()
            .filter(|(prefix, _)| prefix_of::<F>(**prefix).is_some())
            .map(|(prefix, value)| (*prefix, *value))
            .collect();
        let mut changes = changes(&self.known, &wanted);
        let comes = |change: &&Change| matches!(change, Change::Put(prefix, _) if !self.known.contains_key(prefix));
        if self.known.len() + changes.iter().filter(comes).count() > self.entries {
            // What goes makes room.
            changes.sort_by_key(|change| matches!(change, Change::Put(..)));
        }
        let done: Vec<_> = changes.iter().map(|change| self.make(*change)).collect();
        done.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(changes.len())
    }

    fn make(&mut self, change: Change) -> Result<(), TableError> {
        let (Change::Put(prefix, _) | Change::Remove(prefix)) = change;
        let Some((ip, length)) = prefix_of::<F>(prefix) else {
            return Ok(());
        };
        let key = Key::new(length.into(), F::addr(ip));
        match change {
            Change::Put(_, value) => self.map.insert(&key, value, 0),
            Change::Remove(_) => gone(self.map.remove(&key)),
        }
        .map_err(|source| TableError::Write {
            table: name::<F>(),
            source,
        })?;
        match change {
            Change::Put(_, value) => self.known.insert(prefix, value),
            Change::Remove(_) => self.known.remove(&prefix),
        };
        Ok(())
    }
}

fn name<F: Family>() -> String {
    format!("{}_{}", Table::LocalAddrs, F::SUFFIX)
}

/// A single change of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Put(IpNet, LocalAddr),
    Remove(IpNet),
}

/// Returns the changes from one state to another. New entries come first: an address
/// whose entry is replaced by one of another length always has one.
fn changes(from: &Entries, to: &Entries) -> Vec<Change> {
    let put = to
        .iter()
        .filter(|(prefix, value)| from.get(prefix) != Some(value))
        .map(|(prefix, value)| Change::Put(*prefix, *value));
    let remove = from
        .keys()
        .filter(|prefix| !to.contains_key(prefix))
        .map(|prefix| Change::Remove(*prefix));
    put.chain(remove).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_comes_before_what_goes() {
        let net = |text: &str| -> IpNet { text.parse().expect("a prefix") };
        let state = |text: &str| -> Entries {
            let nets = text.split_whitespace().map(net);
            nets.map(|net| (net, LocalAddr::default())).collect()
        };
        let from = state("10.0.0.0/24 192.0.2.1/32");
        let mut to = state("10.0.0.1/32 192.0.2.1/32");
        let [new, old] = ["10.0.0.1/32", "10.0.0.0/24"].map(net);
        assert_eq!(
            changes(&from, &to),
            [Change::Put(new, LocalAddr::default()), Change::Remove(old)]
        );
        assert_eq!(changes(&to, &to), []);
        let flagged = LocalAddr {
            flags: LocalAddr::NODE_PORTS,
        };
        let before = to.clone();
        to.insert(new, flagged);
        assert_eq!(changes(&before, &to), [Change::Put(new, flagged)]);
    }
}
