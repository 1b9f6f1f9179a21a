//! Values of flags, checked where they are read.

use std::time::Duration;

use proxy_common::masquerade::PortRange;

use super::BindAddress;
use crate::{
    config::{
        self, ClusterCidr, FeatureGates,
        node_ports::NodePortAddresses,
        value::{host_port, nanoseconds},
    },
    model::IpFamily,
};

/// The address for metrics: `IP`, `IP:PORT`, or nothing.
pub(super) fn metrics_address(raw: &str) -> Result<BindAddress, String> {
    bind_address(raw, 10249)
}

/// The address for health checks: `IP`, `IP:PORT`, or nothing.
pub(super) fn healthz_address(raw: &str) -> Result<BindAddress, String> {
    bind_address(raw, 10256)
}

fn bind_address(raw: &str, port: u16) -> Result<BindAddress, String> {
    if raw.is_empty() {
        return Ok(BindAddress(None));
    }
    match host_port(raw, port) {
        Ok(address) => Ok(BindAddress(Some(address))),
        Err(wrong) => Err(format!("{}; {}", wrong.reason, wrong.remedy)),
    }
}

/// true or false, as Go spells them.
pub(super) fn switch(raw: &str) -> Result<bool, String> {
    config::value::switch(raw).ok_or_else(|| "expected true or false".to_owned())
}

/// One CIDR, or one of each family.
pub(super) fn cluster_cidr(raw: &str) -> Result<ClusterCidr, String> {
    raw.parse()
        .map_err(|error: config::CidrError| error.to_string())
}

/// CIDRs and keywords.
pub(super) fn node_port_addresses(raw: &str) -> Result<NodePortAddresses, String> {
    raw.parse()
        .map_err(|error: config::node_ports::NodePortAddressError| error.to_string())
}

/// `NAME=BOOL`, or several with commas between them.
pub(super) fn feature_gates(raw: &str) -> Result<FeatureGates, String> {
    raw.parse()
        .map_err(|error: config::GateError| error.to_string())
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
    let nanoseconds = nanoseconds(raw).ok_or_else(expected)?;
    match u64::try_from(nanoseconds) {
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
        Err(_) => Err("must not be less than 0".to_owned()),
    }
}

pub(super) fn positive_duration(raw: &str) -> Result<Duration, String> {
    match duration(raw)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// `https://HOST:PORT`, or the same without the scheme.
pub(super) fn server(raw: &str) -> Result<String, String> {
    let url = if raw.contains("://") {
        raw.to_owned()
    } else {
        format!("https://{raw}")
    };
    match url.parse::<hyper::Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        _ => Err("expected https://HOST:PORT".to_owned()),
    }
}
