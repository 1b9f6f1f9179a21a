//! Copies the entries of one table to another.

use aya::maps::{HashMap, MapData, MapError};

use crate::dataplane::tables;

/// `bpf_map_update_elem`: create only.
const NO_EXIST: u64 = 1;

/// An entry cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("read an entry")]
    Read(#[source] MapError),
    #[error("write an entry")]
    Write(#[source] MapError),
}

/// Copies all entries but those whose key is there, changed by `adapt`; returns how
/// many.
pub(super) fn copy<K: aya::Pod, V: aya::Pod>(
    from: &HashMap<MapData, K, V>,
    to: &mut HashMap<MapData, K, V>,
    adapt: impl Fn(&K, V) -> V,
) -> Result<usize, CopyError> {
    let mut copied = 0;
    for entry in from {
        let (key, value) = entry.map_err(CopyError::Read)?;
        match to.insert(key, adapt(&key, value), NO_EXIST) {
            Ok(()) => copied += 1,
            Err(error) if tables::is_there(&error) => {}
            Err(error) => return Err(CopyError::Write(error)),
        }
    }
    Ok(copied)
}
