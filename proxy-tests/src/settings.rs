//! The settings that an agent has written for the programs on its node.

use std::net::IpAddr;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData};
use proxy_agent::dataplane::{
    mapped::{Access, Mapped},
    pins::Pins,
};
use proxy_common::{
    config::{Config, ConfigFamily, Prefix},
    family::{V4, V6},
};

use crate::node::Node;

/// Returns the ranges of cluster IPs that the programs know: CIDRs of both families.
pub fn service_ranges(node: &Node) -> Result<Vec<String>> {
    let pin = Pins::new(node.pins().path()).map("CONFIG");
    let map = Map::from_map_data(MapData::from_pin(pin)?)?;
    let config: Mapped<Config> = Mapped::new(&map, Access::Read)?;
    let config = config.get(0).context("CONFIG has a row")?;
    let mut ranges = ranges_of::<V4>(&config);
    ranges.extend(ranges_of::<V6>(&config));
    Ok(ranges)
}

fn ranges_of<F: ConfigFamily>(config: &Config) -> Vec<String> {
    let ranges = F::service_ranges(config).iter();
    let used = ranges.filter(|range| **range != Prefix::NONE);
    used.map(|range| {
        let ip: IpAddr = F::ip(range.addr).into();
        let mask: IpAddr = F::ip(range.mask).into();
        let length = match mask {
            IpAddr::V4(mask) => mask.to_bits().count_ones(),
            IpAddr::V6(mask) => mask.to_bits().count_ones(),
        };
        format!("{ip}/{length}")
    })
    .collect()
}
