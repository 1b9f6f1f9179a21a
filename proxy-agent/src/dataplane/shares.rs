//! Tells the programs how many flows a client may have.

use aya::maps::{Array, MapData, MapError};
use proxy_common::{
    config::Config,
    share::{ClientSizes, Share, UNLIMITED},
};

use super::load::Loaded;
use crate::node::flow_sweeper::fair_share::fair_share;

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

/// Sets the share of each family's clients by what the last sweep counted. Returns
/// them, IPv4 first.
pub fn share_out(loaded: &mut Loaded) -> Result<[Share; 2], ShareError> {
    let flags = loaded.config.get(0).map_or(0, |config| config.flags);
    let pressed = [Config::PRESSED_V4, Config::PRESSED_V6].map(|flag| flags & flag != 0);
    let room = room(loaded.flows.min(loaded.reply_tuples));
    let mut shares = [UNLIMITED; 2];
    for ((family, share), pressed) in (0..).zip(&mut shares).zip(pressed) {
        if pressed {
            *share = fair_share(&sizes(loaded, family)?, room);
        }
        let missing = ShareError::Missing { name: "SHARES" };
        let map = loaded.ebpf.map_mut("SHARES").ok_or(missing)?;
        let mut table: Array<&mut MapData, Share> = map.try_into().map_err(ShareError::Write)?;
        table.set(family, *share, 0).map_err(ShareError::Write)?;
    }
    Ok(shares)
}

/// What clients may have together of a table of this size: the rest is for flows that
/// open and for clients that come.
fn room(size: u32) -> u32 {
    size / 8 * 7
}

fn sizes(loaded: &Loaded, family: u32) -> Result<ClientSizes, ShareError> {
    let name = "CLIENT_SIZES";
    let map = loaded.ebpf.map(name).ok_or(ShareError::Missing { name })?;
    let table: Array<&MapData, Sizes> = map.try_into().map_err(ShareError::Read)?;
    let Sizes(sizes) = table.get(&family, 0).map_err(ShareError::Read)?;
    Ok(sizes)
}
