//! What is asked about: a new flow, as the command line or a JSON file spells
//! it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::ValueEnum;
use proxy_common::net::Protocol;
use serde::{Deserialize, Serialize};

use crate::model::IpFamily;

/// Errors in a question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    #[error("{0:?} is not IP or IP:PORT, with an IPv6 address before a port in brackets")]
    From(String),
    #[error("{0:?} is not IP:PORT, with an IPv6 address in brackets")]
    To(String),
    #[error("{from} and {to} are not of one family")]
    Families { from: IpAddr, to: IpAddr },
    #[error("--flows: not a JSON array: {0}")]
    NotAnArray(String),
    #[error("--flows: element {index} (counted from 0): {reason}")]
    Element { index: usize, reason: String },
}

/// The client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Source {
    pub ip: IpAddr,
    /// None: any.
    pub port: Option<u16>,
}

/// The destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Destination(pub SocketAddr);

/// Transport protocols that Services have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    #[default]
    #[serde(alias = "TCP")]
    Tcp,
    #[serde(alias = "UDP")]
    Udp,
    #[serde(alias = "SCTP")]
    Sctp,
}

/// Where the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Its packets come in by the device of a pod of this node.
    Pod,
    /// A process of this node.
    Node,
    /// Its packets come in by a device that leads away from this node.
    External,
}

/// A new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub from: Source,
    pub to: SocketAddr,
    pub transport: Transport,
    /// None: what the client's address suggests.
    pub via: Option<Via>,
}

impl Flow {
    /// A flow between two addresses of one family.
    pub fn new(
        from: Source,
        Destination(to): Destination,
        transport: Transport,
        via: Option<Via>,
    ) -> Result<Self, FlowError> {
        if IpFamily::of(from.ip) != IpFamily::of(to.ip()) {
            return Err(FlowError::Families {
                from: from.ip,
                to: to.ip(),
            });
        }
        Ok(Self {
            from,
            to,
            transport,
            via,
        })
    }
}

/// An element of `--flows`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Element {
    from: Source,
    to: Destination,
    protocol: Option<Transport>,
    via: Option<Via>,
}

/// Reads the JSON array of `--flows`.
pub fn read_array(text: &str) -> Result<Vec<Flow>, FlowError> {
    let elements: Vec<serde_json::Value> =
        serde_json::from_str(text).map_err(|error| FlowError::NotAnArray(error.to_string()))?;
    let read = |(index, value)| {
        let malformed = |reason: String| FlowError::Element { index, reason };
        let Element {
            from,
            to,
            protocol,
            via,
        } = serde_json::from_value(value).map_err(|error| malformed(error.to_string()))?;
        Flow::new(from, to, protocol.unwrap_or_default(), via)
            .map_err(|error| malformed(error.to_string()))
    };
    elements.into_iter().enumerate().map(read).collect()
}

impl FromStr for Source {
    type Err = FlowError;

    fn from_str(raw: &str) -> Result<Self, FlowError> {
        let malformed = || FlowError::From(raw.to_owned());
        if let Ok(address) = raw.parse::<SocketAddr>() {
            return Ok(Self {
                ip: address.ip().to_canonical(),
                port: Some(address.port()).filter(|port| *port != 0),
            });
        }
        let bare = raw
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(raw);
        let ip: IpAddr = bare.parse().map_err(|_| malformed())?;
        Ok(Self {
            ip: ip.to_canonical(),
            port: None,
        })
    }
}

impl FromStr for Destination {
    type Err = FlowError;

    fn from_str(raw: &str) -> Result<Self, FlowError> {
        raw.parse::<SocketAddr>()
            .ok()
            .filter(|to| to.port() != 0)
            .map(|to| Self(SocketAddr::new(to.ip().to_canonical(), to.port())))
            .ok_or_else(|| FlowError::To(raw.to_owned()))
    }
}

impl TryFrom<String> for Source {
    type Error = FlowError;

    fn try_from(raw: String) -> Result<Self, FlowError> {
        raw.parse()
    }
}

impl TryFrom<String> for Destination {
    type Error = FlowError;

    fn try_from(raw: String) -> Result<Self, FlowError> {
        raw.parse()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl Transport {
    /// The protocol's number.
    pub const fn number(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::TCP,
            Self::Udp => Protocol::UDP,
            Self::Sctp => Protocol::SCTP,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.0.0.1", "10.0.0.1")]
    #[case("10.0.0.1:4000", "10.0.0.1:4000")]
    #[case("10.0.0.1:0", "10.0.0.1")]
    #[case("fd00::1", "fd00::1")]
    #[case("[fd00::1]", "fd00::1")]
    #[case("[fd00:0::1]:4000", "[fd00::1]:4000")]
    #[case("::ffff:10.0.0.1", "10.0.0.1")]
    fn reads_clients(#[case] raw: &str, #[case] shown: &str) {
        let source: Source = raw.parse().expect("valid");
        assert_eq!(source.to_string(), shown);
    }

    #[rstest]
    #[case("")]
    #[case("10.0.0.256")]
    #[case("10.0.0.1:65536")]
    #[case("10.0.0.1:")]
    #[case("fd00::1]:80")]
    #[case("host:80")]
    #[case("fe80::1%eth0")]
    fn refuses_other_clients(#[case] raw: &str) {
        assert_eq!(raw.parse::<Source>(), Err(FlowError::From(raw.to_owned())));
    }

    #[rstest]
    #[case("10.0.0.1")]
    #[case("10.0.0.1:0")]
    #[case("fd00::1:80")]
    #[case("[fd00::1]")]
    #[case("web:80")]
    fn refuses_other_destinations(#[case] raw: &str) {
        let refused = Err(FlowError::To(raw.to_owned()));
        assert_eq!(raw.parse::<Destination>(), refused);
    }

    #[test]
    fn reads_arrays_in_order() {
        let text = r#"[
            {"from": "10.0.0.1", "to": "10.96.0.1:80"},
            {"from": "[fd00::1]:7", "to": "[fd00::2]:53", "protocol": "udp", "via": "node"}
        ]"#;
        let flows = read_array(text).expect("valid");
        assert_eq!(flows[0].transport, Transport::Tcp);
        assert_eq!(flows[0].via, None);
        assert_eq!(flows[1].from.port, Some(7));
        assert_eq!(flows[1].transport, Transport::Udp);
        assert_eq!(flows[1].via, Some(Via::Node));
        assert_eq!(read_array("[]"), Ok(Vec::new()));
    }

    #[rstest]
    #[case::address(r#"{"from": "10.0.0", "to": "10.96.0.1:80"}"#, "10.0.0")]
    #[case::no_destination(r#"{"from": "10.0.0.1"}"#, "to")]
    #[case::protocol(
        r#"{"from": "10.0.0.1", "to": "10.96.0.1:80", "protocol": "icmp"}"#,
        "icmp"
    )]
    #[case::via(r#"{"from": "10.0.0.1", "to": "10.96.0.1:80", "via": "vpn"}"#, "vpn")]
    #[case::field(
        r#"{"from": "10.0.0.1", "to": "10.96.0.1:80", "protocl": "udp"}"#,
        "protocl"
    )]
    #[case::families(r#"{"from": "10.0.0.1", "to": "[fd00::1]:80"}"#, "family")]
    #[case::no_object("7", "7")]
    fn names_the_malformed_element(#[case] element: &str, #[case] named: &str) {
        let good = r#"{"from": "10.0.0.1", "to": "10.96.0.1:80"}"#;
        let error = read_array(&format!("[{good}, {element}]")).expect_err("malformed");
        let FlowError::Element { index: 1, reason } = error else {
            panic!("{error}");
        };
        assert!(reason.contains(named), "{reason}");
    }

    #[test]
    fn refuses_what_is_no_array() {
        for text in ["", "{}", "[", "[{}"] {
            assert!(matches!(read_array(text), Err(FlowError::NotAnArray(_))));
        }
    }
}
