//! Clients' numbers of flows, and their limits.

use aya::maps::{Array, MapData, MapError};
use proxy_common::{
    share::{ClientSizes, Share},
    table::Table,
};

use super::load::Loaded;

/// A share could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("the eBPF object has no {name}")]
    Missing { name: &'static str },
    #[error("read table CLIENT_SIZES")]
    Read(#[source] MapError),
    #[error("write table SHARES")]
    Write(#[source] MapError),
}

/// `CLIENT_SIZES` as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Sizes(ClientSizes);

// SAFETY: an array of what is a plain value itself.
unsafe impl aya::Pod for Sizes {}

/// Returns how many flows the clients of a family have by the last sweep: 0 is IPv4, 1 is
/// IPv6.
pub fn client_sizes(loaded: &Loaded, family: u32) -> Result<ClientSizes, ShareError> {
    let name = Table::ClientSizes.name();
    let map = loaded.ebpf.map(name).ok_or(ShareError::Missing { name })?;
    let table: Array<&MapData, Sizes> = map.try_into().map_err(ShareError::Read)?;
    let Sizes(sizes) = table.get(&family, 0).map_err(ShareError::Read)?;
    Ok(sizes)
}

/// Sets the share of a family's clients.
pub fn set_share(loaded: &mut Loaded, family: u32, share: Share) -> Result<(), ShareError> {
    let missing = ShareError::Missing {
        name: Table::Shares.name(),
    };
    let map = loaded.ebpf.map_mut(Table::Shares.name()).ok_or(missing)?;
    let mut table: Array<&mut MapData, Share> = map.try_into().map_err(ShareError::Write)?;
    table.set(family, share, 0).map_err(ShareError::Write)
}
