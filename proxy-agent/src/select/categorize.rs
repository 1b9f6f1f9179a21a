//! Traffic policies, topology hints and terminating endpoints: which endpoints
//! of a Service port make up its cluster set and its local set.

use crate::{
    model::Endpoint,
    select::{EndpointUse, NodeContext},
};

/// The traffic policies of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// internalTrafficPolicy: Local.
    pub internal_local: bool,
    /// externalTrafficPolicy: Local.
    pub external_local: bool,
    /// It has a NodePort, an external IP or a load balancer's address.
    pub externally_accessible: bool,
}

impl Policy {
    /// Some traffic goes to endpoints on any node (S31).
    pub fn uses_cluster(self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    /// Some traffic goes to endpoints on this node only (S31).
    pub fn uses_local(self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// The decisions about a port's endpoints that depend on all of them.
#[derive(Clone, Copy, Debug)]
pub struct Categories<'a> {
    node: &'a NodeContext,
    /// The endpoints that the cluster set takes, if there is one.
    cluster: Option<Admits>,
    topology: Topology,
    /// The endpoints of this node that the local set takes, if there is one.
    local: Option<Admits>,
    has_any: bool,
}

/// The condition an endpoint of a set must meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admits {
    Ready,
    /// None is ready: those that terminate but still serve.
    LastResort,
}

/// The reach of traffic to ready endpoints (S34).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Anywhere,
    SameZone,
    SameNode,
}

impl<'a> Categories<'a> {
    /// Decides about the endpoints of a port.
    pub fn new<'e>(
        endpoints: impl Iterator<Item = &'e Endpoint> + Clone,
        policy: Policy,
        node: &'a NodeContext,
    ) -> Self {
        let local = endpoints
            .clone()
            .filter(|endpoint| is_local(endpoint, node));
        Self {
            node,
            cluster: policy.uses_cluster().then(|| Admits::of(endpoints.clone())),
            topology: Topology::of(endpoints.clone(), node),
            local: policy.uses_local().then(|| Admits::of(local)),
            has_any: endpoints
                .into_iter()
                .any(|endpoint| endpoint.ready || endpoint.is_last_resort()),
        }
    }

    /// Returns whether some endpoint somewhere could take traffic (S36).
    pub fn has_any(&self) -> bool {
        self.has_any
    }

    /// Returns the uses of one of the endpoints.
    pub fn endpoint_use(&self, endpoint: &Endpoint) -> EndpointUse {
        EndpointUse {
            serving: endpoint.serving,
            here: is_local(endpoint, self.node),
            cluster: self.in_cluster_set(endpoint),
            local: self.in_local_set(endpoint),
        }
    }

    /// Topology hints do not apply to endpoints of last resort (S32).
    fn in_cluster_set(&self, endpoint: &Endpoint) -> bool {
        match self.cluster {
            Some(Admits::Ready) => endpoint.ready && self.topology.reaches(endpoint, self.node),
            Some(Admits::LastResort) => endpoint.is_last_resort(),
            None => false,
        }
    }

    /// Topology hints do not apply to the local set (S33).
    fn in_local_set(&self, endpoint: &Endpoint) -> bool {
        self.local.is_some_and(|admits| admits.admits(endpoint)) && is_local(endpoint, self.node)
    }
}

impl Admits {
    fn of<'e>(mut endpoints: impl Iterator<Item = &'e Endpoint>) -> Self {
        if endpoints.any(|endpoint| endpoint.ready) {
            Self::Ready
        } else {
            Self::LastResort
        }
    }

    fn admits(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Ready => endpoint.ready,
            Self::LastResort => endpoint.is_last_resort(),
        }
    }
}

impl Topology {
    /// The narrowest reach that every ready endpoint gives a hint for and some
    /// endpoint is hinted into. Unready endpoints have no say (S34).
    fn of<'e>(endpoints: impl Iterator<Item = &'e Endpoint> + Clone, node: &NodeContext) -> Self {
        let ready = endpoints.filter(|endpoint| endpoint.ready);
        let holds = |reach: Self| {
            ready
                .clone()
                .all(|endpoint| !reach.hints(endpoint).is_empty())
                && ready.clone().any(|endpoint| reach.reaches(endpoint, node))
        };
        if holds(Self::SameNode) {
            Self::SameNode
        } else if holds(Self::SameZone) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn hints(self, endpoint: &Endpoint) -> &[Box<str>] {
        match self {
            Self::Anywhere => &[],
            Self::SameZone => &endpoint.placement.zone_hints,
            Self::SameNode => &endpoint.placement.node_hints,
        }
    }

    /// By its hints, not by where the endpoint is.
    fn reaches(self, endpoint: &Endpoint, node: &NodeContext) -> bool {
        let here = match self {
            Self::Anywhere => return true,
            Self::SameZone => node.zone.as_deref(),
            Self::SameNode => Some(node.name.as_str()),
        };
        here.is_some_and(|here| self.hints(endpoint).iter().any(|hint| **hint == *here))
    }
}

/// Returns whether the endpoint is on this node: its node name is ours, and one
/// without a name is nowhere (S21).
fn is_local(endpoint: &Endpoint, node: &NodeContext) -> bool {
    !node.name.is_empty() && endpoint.placement.node.as_deref() == Some(node.name.as_str())
}

#[cfg(test)]
mod tests;
