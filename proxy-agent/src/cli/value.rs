//! Values of flags, checked where they are read.

use std::{net::SocketAddr, time::Duration};

use proxy_common::masquerade::PortRange;

use super::BindAddress;
use crate::{
    config::{ClusterCidr, FeatureGates, node_ports::NodePortAddresses},
    model::IpFamily,
};

/// `IP:PORT`, or nothing.
pub(super) fn bind_address(raw: &str) -> Result<BindAddress, String> {
    if raw.is_empty() {
        return Ok(BindAddress(None));
    }
    match raw.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(BindAddress(Some(address))),
        Ok(_) => Err("the port must be in 1-65535".to_owned()),
        Err(_) => Err("expected IP:PORT, with an IPv6 address in brackets".to_owned()),
    }
}

/// One CIDR, or one of each family.
pub(super) fn cluster_cidr(raw: &str) -> Result<ClusterCidr, String> {
    raw.parse()
        .map_err(|error: crate::config::CidrError| error.to_string())
}

/// CIDRs and keywords.
pub(super) fn node_port_addresses(raw: &str) -> Result<NodePortAddresses, String> {
    raw.parse()
        .map_err(|error: crate::config::node_ports::NodePortAddressError| error.to_string())
}

/// `NAME=BOOL`, or several with commas between them.
pub(super) fn feature_gates(raw: &str) -> Result<FeatureGates, String> {
    raw.parse()
        .map_err(|error: crate::config::GateError| error.to_string())
}

/// `FIRST-LAST`.
pub(super) fn port_range(raw: &str) -> Result<PortRange, String> {
    let parse = || {
        let (first, last) = raw.split_once('-')?;
        PortRange::new(first.trim().parse().ok()?, last.trim().parse().ok()?)
    };
    parse().ok_or_else(|| "expected FIRST-LAST, two ports in 1-65535".to_owned())
}

pub(super) fn family(raw: &str) -> Result<IpFamily, String> {
    match raw {
        "4" => Ok(IpFamily::V4),
        "6" => Ok(IpFamily::V6),
        _ => Err("expected 4 or 6".to_owned()),
    }
}

/// Numbers with units, as in Go: `1s`, `500ms`, `1m30s`; `0` needs no unit.
pub(super) fn duration(raw: &str) -> Result<Duration, String> {
    let expected = || "expected a duration such as 500ms, 1s or 1m30s".to_owned();
    if raw == "0" {
        return Ok(Duration::ZERO);
    }
    if raw.is_empty() {
        return Err(expected());
    }
    let mut total = Duration::ZERO;
    let mut rest = raw;
    while !rest.is_empty() {
        let (number, behind) = split_where(rest, |c| !c.is_ascii_digit());
        let (unit, behind) = split_where(behind, |c| c.is_ascii_digit());
        let number: u32 = number.parse().map_err(|_| expected())?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(expected()),
        };
        total += unit * number;
        rest = behind;
    }
    Ok(total)
}

pub(super) fn positive_duration(raw: &str) -> Result<Duration, String> {
    match duration(raw)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

fn split_where(text: &str, end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}
