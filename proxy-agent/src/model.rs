//! API objects as Tandem sees them. The last place that knows Kubernetes types.
//!
//! [`Object::from_api`] takes an API object and keeps what a service proxy
//! needs. It cannot fail: what is unusable is left out and named as a
//! [`Problem`], so that one bad field harms only itself.

pub mod address;
pub mod endpoint_slice;
#[cfg(test)]
pub mod generators;
pub mod name;
pub mod node;
pub mod placement;
mod pool;
pub mod service;
pub mod service_cidr;

use std::{fmt, time::SystemTime};

use proxy_common::net::Protocol;

pub use self::{
    address::{AddressProblem, Cidr, FamilyIps, IpFamily},
    endpoint_slice::{Endpoint, EndpointSlice, EndpointSliceProblem},
    name::{Name, ObjectKey, ServicePortName},
    node::{Node, NodeProblem},
    placement::Placement,
    service::{Service, ServicePort, ServiceProblem},
    service_cidr::{ServiceCidr, ServiceCidrProblem},
};

/// A domain type and the API type it is made of.
pub trait Object: Clone + PartialEq + fmt::Debug + Sized {
    type Api;
    const KIND: Kind;

    /// Keeps what the proxy needs of an API object.
    fn from_api(api: Self::Api) -> Parsed<Self>;

    fn key(&self) -> &ObjectKey;
}

/// What became of one API object.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    pub key: ObjectKey,
    /// Nothing if the object does not concern this proxy or nothing of it is
    /// usable: the same to the proxy as an object that is not there.
    pub value: Option<T>,
    pub problems: Vec<Problem>,
    /// When the change happened that led to this version of the object (S28).
    pub triggered: Option<SystemTime>,
}

/// Kinds of API objects the proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

impl Kind {
    /// Whether objects of this kind belong to a namespace.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// Why part of an object is not used. Reads as a log line beside the object's
/// kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Service(#[from] ServiceProblem),
    #[error(transparent)]
    EndpointSlice(#[from] EndpointSliceProblem),
    #[error(transparent)]
    Node(#[from] NodeProblem),
    #[error(transparent)]
    ServiceCidr(#[from] ServiceCidrProblem),
}

impl Problem {
    /// Short name of the problem, the label of its counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Service(problem) => problem.reason(),
            Self::EndpointSlice(problem) => problem.reason(),
            Self::Node(problem) => problem.reason(),
            Self::ServiceCidr(problem) => problem.reason(),
        }
    }
}

/// The API's name of a transport protocol; a missing one means TCP.
fn protocol(raw: Option<String>) -> Result<Protocol, String> {
    match raw.as_deref() {
        None | Some("TCP") => Ok(Protocol::TCP),
        Some("UDP") => Ok(Protocol::UDP),
        Some("SCTP") => Ok(Protocol::SCTP),
        Some(_) => Err(raw.unwrap_or_default()),
    }
}

/// A port number in 1–65535.
fn port_number(raw: i32) -> Option<u16> {
    u16::try_from(raw).ok().filter(|port| *port != 0)
}
