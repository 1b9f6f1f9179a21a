//! API objects as Tandem sees them. The last place that knows Kubernetes types.
//!
//! [`Object::from_api`] takes an API object and keeps what a service proxy
//! needs. It cannot fail: what is unusable is left out and named as a
//! [`Problem`], so that one bad field harms only itself. Where to leave a field
//! out would let clients in that must not, or send traffic another way, the
//! object as a whole counts as [`State::Unreadable`], and what was known of it
//! stays in force.

pub mod address;
pub(crate) mod api;
pub(crate) mod endpoint_slice;
#[cfg(test)]
pub(crate) mod generators;
pub(crate) mod name;
pub(crate) mod node;
pub(crate) mod placement;
mod pool;
pub(crate) mod service;
pub(crate) mod service_cidr;
mod stored;

use std::{fmt, time::SystemTime};

use proxy_common::net::Protocol;

use self::api::{ApiFields, ApiObject, Malformed, Metadata};
pub use self::{
    address::{AddressProblem, Cidr, FamilyIps, IpFamily},
    endpoint_slice::{Endpoint, EndpointSlice, EndpointSliceProblem},
    name::{Name, ObjectKey, ServicePortName},
    node::{Leaving, Node, NodeProblem},
    placement::Placement,
    service::{Service, ServicePort, ServiceProblem},
    service_cidr::{ServiceCidr, ServiceCidrProblem},
};

/// A domain type and the fields of the API it is made of.
pub trait Object: Clone + PartialEq + fmt::Debug + Sized {
    type Fields: ApiFields;
    const KIND: Kind;

    /// Keeps what the proxy needs of an API object.
    fn from_api(api: ApiObject<Self::Fields>) -> Parsed<Self> {
        let mut problems = Problems::default();
        let (key, metadata, fields) = match api.open(Self::KIND.is_namespaced()) {
            Ok(opened) => opened,
            Err(malformed) => {
                problems.add(Problem::Unreadable(malformed));
                return Parsed {
                    key: ObjectKey::default(),
                    state: State::Unreadable,
                    problems: problems.0,
                    triggered: None,
                };
            }
        };
        let triggered = Self::triggered(&metadata);
        let state = match Self::read(&key, metadata, fields, &mut problems) {
            Ok(Some(object)) => State::Usable(object),
            Ok(None) => State::Absent,
            Err(malformed) => {
                problems.add(Problem::Unreadable(malformed));
                State::Unreadable
            }
        };
        Parsed {
            key,
            state,
            problems: problems.0,
            triggered,
        }
    }

    /// Makes the domain object of what was read, if it concerns this proxy.
    /// Fails if a field is malformed that must not be left out.
    fn read(
        key: &ObjectKey,
        metadata: Metadata,
        fields: Self::Fields,
        problems: &mut Problems,
    ) -> Result<Option<Self>, Malformed>;

    /// Time of the change that led to this version of the object (S28).
    fn triggered(_: &Metadata) -> Option<SystemTime> {
        None
    }

    fn key(&self) -> &ObjectKey;
}

/// The result of parsing one API object.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    /// Without a name if it cannot be told which object it is.
    pub key: ObjectKey,
    pub state: State<T>,
    pub problems: Vec<Problem>,
    /// Time of the change that led to this version of the object (S28).
    pub triggered: Option<SystemTime>,
}

impl<T> Parsed<T> {
    /// Returns whether it can be told which object this is.
    pub fn is_named(&self) -> bool {
        !self.key.name().is_empty()
    }
}

/// The outcome of reading an API object.
#[derive(Clone, Debug, PartialEq)]
pub enum State<T> {
    Usable(T),
    /// The object does not concern this proxy, or nothing of it is usable; treated like an
    /// object that does not exist.
    Absent,
    /// The object could not be read. Its last known state stays in force.
    Unreadable,
}

impl<T> State<T> {
    pub fn as_ref(&self) -> State<&T> {
        match self {
            Self::Usable(object) => State::Usable(object),
            Self::Absent => State::Absent,
            Self::Unreadable => State::Unreadable,
        }
    }

    /// The object, if there is a usable one.
    pub fn usable(self) -> Option<T> {
        match self {
            Self::Usable(object) => Some(object),
            Self::Absent | Self::Unreadable => None,
        }
    }
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
    /// Returns whether objects of this kind belong to a namespace.
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

/// A reason why part of an object is not used. Displayed in a log line after the
/// object's kind and name.
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
    /// A field is malformed; what that costs.
    #[error("{0}, {1}")]
    Malformed(Malformed, &'static str),
    #[error("{0}; what was known of the object before stays in force")]
    Unreadable(Malformed),
}

impl Problem {
    /// Short name of the problem, the label of its counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Service(problem) => problem.reason(),
            Self::EndpointSlice(problem) => problem.reason(),
            Self::Node(problem) => problem.reason(),
            Self::ServiceCidr(problem) => problem.reason(),
            Self::Malformed(..) => "malformed",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

/// The problems of one object, as they are found.
#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn add(&mut self, problem: impl Into<Problem>) {
        self.0.push(problem.into());
    }

    /// The value of a field that may be left out, and what it costs if it is
    /// malformed.
    pub fn note<T>(&mut self, read: Result<T, Malformed>, costs: &'static str) -> Option<T> {
        read.map_err(|malformed| self.add(Problem::Malformed(malformed, costs)))
            .ok()
    }
}

/// The API's name of a transport protocol; a missing one means TCP.
fn protocol(raw: Option<&str>) -> Option<Protocol> {
    match raw {
        None | Some("TCP") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        Some(_) => None,
    }
}

/// A port number in 1–65535.
fn port_number(raw: i64) -> Option<u16> {
    u16::try_from(raw).ok().filter(|port| *port != 0)
}
