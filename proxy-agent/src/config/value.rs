//! Values of settings, as text: what kube-proxy's validation takes, and why not (S101).

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr as _,
};

use serde_json::Value;

use super::{ClusterCidr, node_ports::NodePortAddresses};
use crate::model::address::parse_cidr;

/// What values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    /// Within these bounds.
    Int(i64, i64),
    Float,
    Text,
    /// At least so many nanoseconds.
    Duration(i64),
    /// An address to listen on, and the port if it names none.
    HostPort(u16),
    /// A port, or 0 for none.
    Port,
    Address,
    /// One CIDR, or one of each family.
    Cidrs,
    CidrList,
    NodePorts,
    List,
    /// Names with true or false.
    Gates,
    OneOf(&'static [&'static str]),
    /// Whatever it may be.
    Any,
}

/// Why a value is not taken, and what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub reason: String,
    pub remedy: String,
}

fn wrong<T>(reason: impl Into<String>, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        reason: reason.into(),
        remedy: remedy.into(),
    })
}

impl Kind {
    /// Turns a value of a file into what a flag would say.
    pub fn text_of(self, value: &Value) -> Result<String, Wrong> {
        let scalar = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
            _ => None,
        };
        let unlike = |what: &str| wrong(format!("must be {what}"), "correct its type");
        match (self, value) {
            (Self::Bool, Value::Bool(_)) => Ok(value.to_string()),
            (Self::Bool, _) => unlike("true or false"),
            (Self::Int(..) | Self::Port, Value::Number(number)) if !number.is_f64() => {
                Ok(number.to_string())
            }
            (Self::Int(..) | Self::Port, _) => unlike("a whole number"),
            (Self::Float, value) => match value.as_f64() {
                Some(number) => Ok(number.to_string()),
                None => unlike("a number"),
            },
            (Self::Any, value) => Ok(scalar(value).unwrap_or_else(|| value.to_string())),
            (Self::CidrList | Self::NodePorts | Self::List, Value::Array(items)) => {
                let items = items.iter().map(|item| item.as_str());
                match items.collect::<Option<Vec<_>>>() {
                    Some(items) => Ok(items.join(",")),
                    None => unlike("a list of texts"),
                }
            }
            (Self::CidrList | Self::NodePorts | Self::List, _) => unlike("a list of texts"),
            (Self::Gates, Value::Object(gates)) => {
                let gate = |(name, value): (&String, &Value)| {
                    value.as_bool().map(|value| format!("{name}={value}"))
                };
                match gates.iter().map(gate).collect::<Option<Vec<_>>>() {
                    Some(gates) => Ok(gates.join(",")),
                    None => unlike("names, each with true or false"),
                }
            }
            (Self::Gates, _) => unlike("names, each with true or false"),
            (Self::Duration(_), Value::String(text)) => Ok(text.clone()),
            (Self::Duration(_), _) => wrong(
                "must be a text with units",
                "write a duration such as 500ms, 30s or 1m30s",
            ),
            (_, Value::String(text)) => Ok(text.clone()),
            (_, _) => unlike("a text"),
        }
    }

    /// Returns whether a value stands for the default where zeros do.
    pub fn is_zero(self, text: &str) -> bool {
        match self {
            Self::Bool => text == "false",
            Self::Int(..) | Self::Port => text == "0",
            Self::Float => text.parse() == Ok(0.0),
            Self::Duration(_) => nanoseconds(text) == Some(0),
            Self::Any => match serde_json::from_str(text) {
                Ok(value) => is_all_zero(&value),
                Err(_) => text.is_empty(),
            },
            _ => text.is_empty(),
        }
    }

    /// Checks a value as kube-proxy does.
    pub fn check(self, text: &str) -> Result<(), Wrong> {
        match self {
            Self::Text | Self::List | Self::Any => Ok(()),
            Self::Bool => match switch(text) {
                Some(_) => Ok(()),
                None => wrong("must be true or false", "write true or false"),
            },
            Self::Int(least, most) => match text.parse::<i64>() {
                Ok(number) if (least..=most).contains(&number) => Ok(()),
                Ok(_) if most >= i64::from(i32::MAX) => wrong(
                    format!("must be greater than or equal to {least}"),
                    "leave it out for the default",
                ),
                Ok(_) => wrong(
                    format!("must be within the range [{least}, {most}]"),
                    "leave it out for the default",
                ),
                Err(_) => wrong("must be a whole number", "leave it out for the default"),
            },
            Self::Port => match text.parse::<u16>() {
                Ok(_) => Ok(()),
                Err(_) => wrong("must be a port", "write 0-65535, where 0 means none"),
            },
            Self::Float => match text.parse::<f32>() {
                Ok(number) if number.is_finite() => Ok(()),
                _ => wrong("must be a number", "leave it out for the default"),
            },
            Self::Duration(least) => duration(text, least),
            Self::HostPort(port) => host_port(text, port).map(drop),
            Self::Address => match text.parse::<IpAddr>() {
                Ok(_) => Ok(()),
                Err(_) => wrong(
                    "not a valid textual representation of an IP address",
                    "write an address such as 0.0.0.0 or ::",
                ),
            },
            Self::Cidrs => ClusterCidr::from_str(text)
                .map(drop)
                .map_err(|error| Wrong {
                    reason: error.to_string(),
                    remedy: "write one CIDR, or one of each family: 10.244.0.0/16,fd00:10:244::/48"
                        .to_owned(),
                }),
            Self::CidrList => match text.split(',').find(|cidr| parse_cidr(cidr).is_none()) {
                Some(other) => wrong(
                    format!("{other:?} is not a CIDR"),
                    "write CIDRs such as 10.0.0.0/8",
                ),
                None => Ok(()),
            },
            Self::NodePorts => NodePortAddresses::from_str(text)
                .map(drop)
                .map_err(|error| Wrong {
                    reason: error.to_string(),
                    remedy: "write CIDRs, or the keywords primary, localhost and all".to_owned(),
                }),
            Self::Gates => super::FeatureGates::from_str(text)
                .map(drop)
                .map_err(|error| Wrong {
                    reason: error.to_string(),
                    remedy: "write NAME=true or NAME=false".to_owned(),
                }),
            Self::OneOf(words) => {
                let words: Vec<_> = words.iter().filter(|word| !word.is_empty()).collect();
                if text.is_empty() || words.contains(&&text) {
                    return Ok(());
                }
                let words = words.iter().map(|word| **word).collect::<Vec<_>>();
                wrong(
                    format!("must be {}, or nothing", words.join(", ")),
                    "leave it out for the default",
                )
            }
        }
    }
}

/// Returns whether nothing in a value is anything but zero, empty or false.
fn is_all_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.iter().all(is_all_zero),
        Value::Object(fields) => fields.values().all(is_all_zero),
    }
}

/// true or false in any of the spellings that Go's flags take.
pub fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// An address to listen on; one without a port has the usual one.
pub fn host_port(text: &str, port: u16) -> Result<SocketAddr, Wrong> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let remedy = format!("write IP:PORT, such as 0.0.0.0:{port} or [::]:{port}");
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => wrong("must be a valid port", remedy),
        Err(_) => wrong("must be IP:PORT, with an IPv6 address in brackets", remedy),
    }
}

fn duration(text: &str, least: i64) -> Result<(), Wrong> {
    match nanoseconds(text) {
        None => wrong(
            "is no duration",
            "write numbers with units, such as 500ms, 30s or 1m30s",
        ),
        Some(time) if time >= least => Ok(()),
        Some(_) if least == 0 => wrong(
            "must be greater than or equal to 0",
            "leave it out for the default",
        ),
        Some(_) => wrong("must be greater than 0", "leave it out for the default"),
    }
}

/// Reads a duration as Go does: numbers, also with fractions, each with a unit; `0` needs
/// none.
pub fn nanoseconds(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_i128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let read = |digits: &str| match digits {
            "" => Some(0),
            digits => digits.parse::<i64>().ok().map(i128::from),
        };
        // More digits than nanoseconds have make no difference.
        let fraction = &fraction[..fraction.len().min(15)];
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        total += read(whole)? * unit + read(fraction)? * unit / scale;
        rest = behind;
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", Some(0))]
    #[case("1m30s", Some(90_000_000_000))]
    #[case("1.5h", Some(5_400_000_000_000))]
    #[case(".5s", Some(500_000_000))]
    #[case("-5s", Some(-5_000_000_000))]
    #[case("250us", Some(250_000))]
    #[case("3µs", Some(3_000))]
    #[case("15m0s", Some(900_000_000_000))]
    #[case("", None)]
    #[case("5", None)]
    #[case("s", None)]
    #[case("1.2.3s", None)]
    #[case("1d", None)]
    #[case("999999999999h", None)]
    fn durations_are_those_of_go(#[case] text: &str, #[case] expected: Option<i64>) {
        assert_eq!(nanoseconds(text), expected);
    }

    #[rstest]
    #[case("127.0.0.1", Some("127.0.0.1:10249"))]
    #[case("::1", Some("[::1]:10249"))]
    #[case("[::]:9", Some("[::]:9"))]
    #[case("0.0.0.0:10256", Some("0.0.0.0:10256"))]
    #[case("0.0.0.0:0", None)]
    #[case("::1:70000", None)]
    #[case("[::1]", None)]
    #[case("localhost:10249", None)]
    fn a_port_may_be_left_out(#[case] text: &str, #[case] expected: Option<&str>) {
        let expected = expected.map(|text| text.parse().expect("an address"));
        assert_eq!(host_port(text, 10249).ok(), expected);
    }
}
