//! Endpoints and ports of which everything has the type that it should have.

use super::fields::{Endpoint, Hint, PortFields};
use crate::model::api::{Field, List, Malformed};

/// A port of a slice.
pub(super) struct RawPort {
    pub(super) name: Option<Box<str>>,
    pub(super) protocol: Option<Box<str>>,
    pub(super) port: Option<i64>,
}

impl RawPort {
    pub(super) fn read(port: Field<PortFields>, at: usize) -> Result<Self, Malformed> {
        let path = format_args!("ports[{at}]");
        let port = port.or_default(path)?;
        Ok(Self {
            name: port.name.at(format_args!("{path}.name"))?,
            protocol: port.protocol.at(format_args!("{path}.protocol"))?,
            port: port.port.at(format_args!("{path}.port"))?,
        })
    }
}

/// An endpoint of a slice.
pub(super) struct RawEndpoint {
    /// The first one: further addresses have no meaning (S18).
    pub(super) address: Option<Box<str>>,
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
    pub(super) node: Option<Box<str>>,
    pub(super) zone_hints: Vec<Box<str>>,
    pub(super) node_hints: Vec<Box<str>>,
}

impl RawEndpoint {
    /// Fails if anything is malformed: without a condition the endpoint would
    /// count as ready, without its node's name as one of another node, and
    /// without its hints those of all endpoints would be ignored.
    pub(super) fn read(endpoint: Field<Endpoint>, at: usize) -> Result<Self, Malformed> {
        let path = format_args!("endpoints[{at}]");
        let endpoint = endpoint.or_default(path)?;
        let addresses = endpoint
            .addresses
            .or_default(format_args!("{path}.addresses"))?;
        let address = addresses.into_iter().next();
        let address = address.map(|first| first.or_default(format_args!("{path}.addresses[0]")));
        let conditions = endpoint
            .conditions
            .or_default(format_args!("{path}.conditions"))?;
        let condition =
            |condition: Field<bool>, name| condition.at(format_args!("{path}.conditions.{name}"));
        let hints = endpoint.hints.or_default(format_args!("{path}.hints"))?;
        let names = |hints: Field<List<Hint>>, name: &str| {
            let path = format_args!("{path}.hints.{name}");
            let hints = hints.or_default(path)?;
            let names = hints.into_iter().enumerate().map(|(at, hint)| {
                let hint = hint.or_default(format_args!("{path}[{at}]"))?;
                hint.name.or_default(format_args!("{path}[{at}].name"))
            });
            names.collect::<Result<_, _>>()
        };
        Ok(Self {
            address: address.transpose()?,
            ready: condition(conditions.ready, "ready")?,
            serving: condition(conditions.serving, "serving")?,
            terminating: condition(conditions.terminating, "terminating")?,
            node: endpoint.node_name.at(format_args!("{path}.nodeName"))?,
            zone_hints: names(hints.for_zones, "forZones")?,
            node_hints: names(hints.for_nodes, "forNodes")?,
        })
    }
}
