//! A lab with a control plane and an agent on every node that watches it.

use std::ops::Deref;

use anyhow::Result;

use super::{ControlPlane, Kubectl, Namespace, ServiceRanges};
use crate::{
    agent::{Agent, AgentOptions, Source},
    lab::Lab,
    topology::Topology,
};

/// A working cluster. Fields are dropped in this order.
#[derive(Debug)]
pub struct Cluster {
    /// They live no longer than the lab below, whatever their type says.
    agents: Vec<Agent<'static>>,
    control_plane: ControlPlane,
    lab: OwnedLab,
}

impl Cluster {
    /// Starts the lab, the control plane and the agents, and waits until all
    /// are ready. The nodes reach the API server over one family and the other
    /// in turn.
    pub fn start(topology: Topology, ranges: ServiceRanges) -> Result<Self> {
        let mut lab = Lab::start(topology)?;
        let control_plane = ControlPlane::start(&mut lab, ranges)?;
        let mut cluster = Self {
            agents: Vec::new(),
            control_plane,
            lab: OwnedLab::new(lab),
        };
        cluster.start_agents()?;
        Ok(cluster)
    }

    /// Starts an agent on every node and waits until all are ready.
    fn start_agents(&mut self) -> Result<()> {
        // SAFETY: the agents are dropped before the lab, and never handed out
        // with this lifetime: `Cluster::agents` shortens it.
        let lab: &'static Lab = unsafe { &*self.lab.0 };
        let families = lab.families().list().iter().cycle();
        for (node, &family) in lab.nodes.iter().zip(families) {
            let options = AgentOptions {
                source: Source::Kubeconfig(self.control_plane.agent_kubeconfig(family)?),
                ..AgentOptions::default()
            };
            self.agents.push(Agent::start(node, lab, &options)?);
        }
        self.agents.iter().try_for_each(Agent::wait_ready)
    }

    /// The agents, in the order of the nodes.
    pub fn agents(&self) -> &[Agent<'_>] {
        &self.agents
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// `kubectl` as administrator.
    pub fn kubectl(&self) -> &Kubectl {
        self.control_plane.kubectl()
    }

    /// A namespace for one test.
    pub fn namespace(&self, name: &str) -> Result<Namespace<'_>> {
        Namespace::create(self.lab(), self.kubectl(), name)
    }
}

/// A lab on the heap that other fields of the same value refer to.
#[derive(Debug)]
struct OwnedLab(*mut Lab);

// SAFETY: a `Box<Lab>` is both, and this is one that may have borrowers.
unsafe impl Send for OwnedLab {}
// SAFETY: as above.
unsafe impl Sync for OwnedLab {}

impl OwnedLab {
    fn new(lab: Lab) -> Self {
        Self(Box::into_raw(Box::new(lab)))
    }
}

impl Deref for OwnedLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        // SAFETY: it comes from a box and is freed on drop only.
        unsafe { &*self.0 }
    }
}

impl Drop for OwnedLab {
    fn drop(&mut self) {
        // SAFETY: it comes from `Box::into_raw`, and who borrowed it is gone.
        drop(unsafe { Box::from_raw(self.0) });
    }
}
